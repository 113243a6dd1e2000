//! Whether a program lives and whether it is ready: asked of its own loop each time, so that one that hangs does not look well.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{Router, http::StatusCode, routing::get};
use futures::future::BoxFuture;

/// A loop that takes longer to answer does not live.
const ANSWER_MAX: Duration = Duration::from_secs(5);

type Ask = Box<dyn Fn() -> BoxFuture<'static, Vec<String>> + Send + Sync>;

/// The way to ask. It can be served before there is anybody who answers.
#[derive(Clone, Default)]
pub struct Health(Arc<OnceLock<Ask>>);

impl fmt::Debug for Health {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Health").finish_non_exhaustive()
    }
}

/// What comes of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// It lives, and lacks this.
    Lacks(Vec<String>),
    Silent,
}

impl Health {
    /// From here on `ask` says what the program lacks to do its work; nothing: it is ready. The first one counts.
    pub fn answered_by<A>(&self, ask: impl Fn() -> A + Send + Sync + 'static)
    where
        A: Future<Output = Vec<String>> + Send + 'static,
    {
        if self.0.set(Box::new(move || Box::pin(ask()))).is_err() {
            tracing::debug!("somebody answers for this program already");
        }
    }

    async fn state(&self) -> State {
        let Some(ask) = self.0.get() else { return State::Lacks(vec!["it starts".into()]) };
        match tokio::time::timeout(ANSWER_MAX, ask()).await {
            Ok(lacks) if lacks.is_empty() => State::Ready,
            Ok(lacks) => State::Lacks(lacks),
            Err(_elapsed) => State::Silent,
        }
    }

    /// `GET /healthz`: 200 while it lives. `GET /readyz`: 200 while it can do its work, else 503 and a line for each thing that it lacks.
    pub(crate) fn routes(&self) -> Router {
        let (alive, ready) = (self.clone(), self.clone());
        Router::new()
            .route("/healthz", get(async move || alive.state().await.alive()))
            .route("/readyz", get(async move || ready.state().await.ready()))
    }
}

impl State {
    fn alive(self) -> (StatusCode, String) {
        match self {
            Self::Ready | Self::Lacks(_) => (StatusCode::OK, "alive\n".into()),
            Self::Silent => (StatusCode::SERVICE_UNAVAILABLE, silent()),
        }
    }

    fn ready(self) -> (StatusCode, String) {
        match self {
            Self::Ready => (StatusCode::OK, "ready\n".into()),
            Self::Lacks(lacks) => (StatusCode::SERVICE_UNAVAILABLE, lacks.join("\n") + "\n"),
            Self::Silent => (StatusCode::SERVICE_UNAVAILABLE, silent()),
        }
    }
}

fn silent() -> String {
    format!("it does not answer within {} s\n", ANSWER_MAX.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_starts_lives_and_is_not_ready() {
        let health = Health::default();
        assert_eq!(health.state().await, State::Lacks(vec!["it starts".into()]));
        health.answered_by(async || Vec::new());
        assert_eq!(health.state().await, State::Ready);
        health.answered_by(async || vec!["another one".into()]);
        assert_eq!(health.state().await, State::Ready, "the first one counts");
    }

    #[tokio::test(start_paused = true)]
    async fn who_hangs_neither_lives_nor_is_ready() {
        let health = Health::default();
        health.answered_by(std::future::pending::<Vec<String>>);
        let state = health.state().await;
        assert_eq!(state, State::Silent);
        assert_eq!(state.clone().alive().0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(state.ready().0, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn what_it_lacks_is_told_line_by_line_and_is_no_reason_to_end_it() {
        let lacks = State::Lacks(vec!["a".into(), "b".into()]);
        assert_eq!(lacks.clone().ready(), (StatusCode::SERVICE_UNAVAILABLE, "a\nb\n".into()));
        assert_eq!(lacks.alive(), (StatusCode::OK, "alive\n".into()));
    }
}
