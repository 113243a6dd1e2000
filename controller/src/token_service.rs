//! The Tokens service: what people ask about tokens of the gateway. The store keeps them, [`Tokens`] goes by them.

use std::{collections::BTreeSet, sync::Arc, time::SystemTime};

use medes_proto::{
    failure::{Failure, FailureKind},
    ids::{FunctionName, NameError, TokenName},
    limits::TOKEN_FUNCTIONS_MAX,
    wire::{self, tokens_server::Tokens as TokensRpc},
};
use tonic::{Request, Response, Status};

use crate::{
    store::{Store, StoreError},
    tokens::{self, AddTokenError, Token, Tokens},
};

/// The service.
#[derive(Debug)]
pub(crate) struct TokenService {
    tokens: Arc<Tokens>,
    store: Arc<Store>,
    /// Changes reach the store and the gateway in the same order.
    changes: Arc<tokio::sync::Mutex<()>>,
}

/// Work that blocks on the disk. It goes on if the caller goes away.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| Status::internal(error.to_string()))?;
    done.map_err(|error| {
        let failure = Failure::from_error(FailureKind::Internal, &error);
        tracing::error!("store: {failure}");
        Status::internal(failure.message)
    })
}

fn invalid(error: &NameError) -> Status {
    Status::invalid_argument(error.to_string())
}

impl TokenService {
    pub(crate) fn new(tokens: &Arc<Tokens>, store: &Arc<Store>) -> Self {
        Self { tokens: Arc::clone(tokens), store: Arc::clone(store), changes: Arc::default() }
    }
}

#[tonic::async_trait]
impl TokensRpc for TokenService {
    async fn create(
        &self,
        request: Request<wire::CreateTokenRequest>,
    ) -> Result<Response<wire::CreateTokenReply>, Status> {
        let wire::CreateTokenRequest { name, functions, operator } = request.into_inner();
        if functions.len() > TOKEN_FUNCTIONS_MAX {
            return Err(Status::invalid_argument(format!("more than {TOKEN_FUNCTIONS_MAX} functions")));
        }
        if operator && !functions.is_empty() {
            return Err(Status::invalid_argument("an operator's token is for no function"));
        }
        let name = name.parse::<TokenName>().map_err(|error| invalid(&error))?;
        let functions: BTreeSet<FunctionName> = functions
            .iter()
            .map(|name| name.parse())
            .collect::<Result<_, _>>()
            .map_err(|error| invalid(&error))?;
        let functions = Some(functions).filter(|functions| !functions.is_empty());
        let turn = Arc::clone(&self.changes).lock_owned().await;
        self.tokens.may_add(&name).map_err(|error| match error {
            AddTokenError::Exists => Status::already_exists(error.to_string()),
            AddTokenError::Full => Status::resource_exhausted(error.to_string()),
        })?;
        let (text, hash) = tokens::make(&name).map_err(|error| Status::internal(error.to_string()))?;
        let token = Token { hash, functions, operator, created: SystemTime::now() };
        let (store, key, kept) = (Arc::clone(&self.store), name.clone(), token.clone());
        on_disk(move || store.add_token(&key, &kept)).await?;
        tracing::info!(token = %name, operator, "token created");
        self.tokens.add(name, token);
        drop(turn);
        Ok(Response::new(wire::CreateTokenReply { token: text }))
    }

    async fn list(
        &self,
        _request: Request<wire::ListTokensRequest>,
    ) -> Result<Response<wire::ListTokensReply>, Status> {
        let rows = self.tokens.list().into_iter().map(|(name, token)| wire::TokenRow {
            name: name.into(),
            functions: token.functions.into_iter().flatten().map(Into::into).collect(),
            operator: token.operator,
            created_s: token.created.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
        });
        Ok(Response::new(wire::ListTokensReply { tokens: rows.collect() }))
    }

    async fn revoke(
        &self,
        request: Request<wire::RevokeTokenRequest>,
    ) -> Result<Response<wire::RevokeTokenReply>, Status> {
        let name = request.into_inner().name.parse::<TokenName>().map_err(|error| invalid(&error))?;
        let turn = Arc::clone(&self.changes).lock_owned().await;
        // Worthless first: what the disk says counts only for the next start.
        self.tokens.revoke(&name);
        let (store, key) = (Arc::clone(&self.store), name.clone());
        if !on_disk(move || store.revoke_token(&key)).await? {
            return Err(Status::not_found(format!("there is no token {name}")));
        }
        tracing::info!(token = %name, "token revoked");
        drop(turn);
        Ok(Response::new(wire::RevokeTokenReply {}))
    }
}
