//! `medes token create|list|revoke`: who may call the HTTP gateway.

use std::time::{Duration, SystemTime};

use medes_proto::{
    ids::{FunctionName, TokenName},
    wire,
};
use serde::Serialize;

use crate::{
    client::{Client, QUICK},
    error::CliError,
    human,
    output::{Output, Sheet},
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum TokenVerb {
    /// Make a token and print it; it cannot be seen again
    ///
    /// Callers of the HTTP gateway show it as `authorization: Bearer TOKEN`. As soon as there is one, all need one.
    Create {
        /// What it is called in lists
        name: TokenName,
        /// A function it is for [default: all]
        #[arg(long = "function", value_name = "FUNCTION")]
        functions: Vec<FunctionName>,
        /// It is for looking at the controller's page, and for no function
        #[arg(long, conflicts_with = "functions")]
        operator: bool,
    },
    /// List tokens, without what they are
    List,
    /// Make a token worthless, at once
    ///
    /// Where nobody was asked before the first token was made, nobody is asked after the last one is gone.
    Revoke {
        /// Its name
        name: TokenName,
    },
}

#[derive(Serialize)]
struct CreatedView {
    name: String,
    token: String,
}

/// Times are seconds since 1970.
#[derive(Serialize)]
struct TokenView {
    name: String,
    /// None: all.
    functions: Vec<String>,
    /// For the page, and for no function.
    operator: bool,
    created: u64,
}

#[derive(Serialize)]
struct RevokedView {
    name: String,
    revoked: bool,
}

pub(crate) async fn run(verb: TokenVerb, client: &Client, output: &Output) -> Result<(), CliError> {
    let mut tokens = client.tokens();
    match verb {
        TokenVerb::Create { name, functions, operator } => {
            let functions = functions.into_iter().map(Into::into).collect();
            let request = wire::CreateTokenRequest { name: name.clone().into(), functions, operator };
            let doing = format!("create token {name}");
            let token = client.call(&doing, QUICK, async |_| tokens.create(request).await).await?.token;
            output.answer(&CreatedView { name: name.into(), token: token.clone() }, || token + "\n")
        }
        TokenVerb::List => {
            let ask = wire::ListTokensRequest {};
            let reply = client.call("list tokens", QUICK, async |_| tokens.list(ask).await).await?;
            list(reply.tokens, output)
        }
        TokenVerb::Revoke { name } => {
            let request = wire::RevokeTokenRequest { name: name.clone().into() };
            let doing = format!("revoke token {name}");
            client.call(&doing, QUICK, async |_| tokens.revoke(request).await).await?;
            let text = format!("token {name} revoked\n");
            output.answer(&RevokedView { name: name.into(), revoked: true }, || text)
        }
    }
}

fn list(rows: Vec<wire::TokenRow>, output: &Output) -> Result<(), CliError> {
    let now = SystemTime::now();
    let views = rows.into_iter().map(|row| {
        let wire::TokenRow { name, functions, created_s, operator } = row;
        TokenView { name, functions, operator, created: created_s }
    });
    let views: Vec<_> = views.collect();
    output.answer(&views, || {
        let mut sheet = Sheet::new(&["TOKEN", "FUNCTIONS", ">AGE"]);
        for view in &views {
            let functions = match &*view.functions {
                [] if view.operator => "none: the page".into(),
                [] => "all".into(),
                some => some.join(" "),
            };
            let created = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(view.created));
            let age = created.and_then(|created| now.duration_since(created).ok()).unwrap_or_default();
            sheet.row(vec![view.name.clone(), functions, human::age(age)]);
        }
        sheet.text("no tokens")
    })
}
