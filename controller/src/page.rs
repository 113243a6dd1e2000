//! The page for people: one document, one style sheet, one script, and what they ask for. Read only.
//!
//! The three files are the same for everybody and open to everybody. What is asked for (`/data/...`) is for operators: who asks shows an
//! operator's token. Only where whoever reaches the control port may do everything anyway is nobody asked, as long as there is no such token;
//! then a name in `Host` is refused, so that no other site's script comes in by giving its own name this machine's address.

mod heat;
mod memory;
mod show;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use medes_identity::security::Security;
use medes_proto::{
    failure::{Failure, FailureKind},
    heat::HeatMap,
    ids::SandboxId,
};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::{
    heat::Picture,
    memory::{Memory, Sample},
    show::{ClusterView, OneView},
};
use crate::{
    agents::{Agents, InvokeError},
    control::ControlService,
    driver::SandboxRow,
    latencies::Latencies,
    registry::Registry,
    shell::{Handle, Stopped},
    tokens::{Admitted, Denied, Tokens},
    trace::Hub,
};

/// Questions answered at a time: each looks at the driver.
const ASKED_MAX: usize = 16;
/// Events in one answer.
const EVENTS_MAX: usize = 200;
/// Between two samples of memory.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);

/// Nothing comes from elsewhere, nothing is run that is not one of the files, and nobody puts the page into another one.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";
const HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

/// What questions are answered from.
#[derive(Debug)]
pub(crate) struct Sources {
    driver: Handle,
    hub: Arc<Hub>,
    agents: Arc<Agents>,
    registry: Arc<dyn Registry>,
    tokens: Arc<Tokens>,
    latencies: Arc<Latencies>,
    /// Whoever reaches the control port may do everything.
    is_plain: bool,
}

impl Sources {
    /// What the Control service answers from.
    pub(crate) fn of(control: &ControlService, tokens: &Arc<Tokens>, security: &Security) -> Self {
        Self {
            driver: control.driver.clone(),
            hub: Arc::clone(&control.hub),
            agents: Arc::clone(&control.agents),
            registry: Arc::clone(&control.registry),
            tokens: Arc::clone(tokens),
            latencies: Arc::clone(control.invoker.latencies()),
            is_plain: matches!(security, Security::Plaintext),
        }
    }
}

/// The page.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    sources: Arc<Sources>,
    memory: Arc<Mutex<Memory>>,
    asked: Arc<Semaphore>,
}

impl Page {
    pub(crate) fn new(sources: Sources) -> Self {
        Self { sources: sources.into(), memory: Arc::default(), asked: Semaphore::new(ASKED_MAX).into() }
    }

    /// Samples memory until `stop`.
    pub(crate) async fn watch(self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(SAMPLE_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let look =
                self.sources.driver.look(|driver, now| (driver.node_rows(now), driver.sandbox_rows(now)));
            let Ok((nodes, sandboxes)) = look.await else { return };
            let since_epoch = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
            let unix_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
            self.memory().keep(unix_ms, Sample::of(&nodes, &sandboxes));
        }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page's routes.
    pub(crate) fn router(self) -> Router {
        let data = Router::new()
            .route("/data/cluster", get(cluster))
            .route("/data/sandbox/{sandbox}", get(sandbox))
            .route_layer(from_fn_with_state(self.clone(), guard))
            .with_state(self.clone());
        Router::new()
            .route("/", get(async || file("text/html; charset=utf-8", include_str!("page/index.html"))))
            .route("/page.css", get(async || file("text/css; charset=utf-8", include_str!("page/page.css"))))
            .route(
                "/page.js",
                get(async || file("text/javascript; charset=utf-8", include_str!("page/page.js"))),
            )
            .route("/door", get(door))
            .with_state(self)
            .merge(data)
            .layer(from_fn(with_headers))
    }
}

/// One of the three.
type File = ([(HeaderName, &'static str); 1], &'static str);

const fn file(kind: &'static str, text: &'static str) -> File {
    ([(header::CONTENT_TYPE, kind)], text)
}

async fn with_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether a token is needed: asked before anything else, so that nobody runs into a closed door.
async fn door(State(page): State<Page>) -> Response {
    #[derive(Serialize)]
    struct DoorView {
        asks: bool,
    }
    answer(&DoorView { asks: page.sources.tokens.look(None, page.sources.is_plain).is_err() })
}

/// Lets operators through, a few at a time.
async fn guard(State(page): State<Page>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    match page.sources.tokens.look(shown, page.sources.is_plain) {
        Ok(Admitted::ByToken) => {}
        Ok(Admitted::Unasked) if is_by_address(request.headers()) => {}
        Ok(Admitted::Unasked) => {
            return refuse(
                StatusCode::MISDIRECTED_REQUEST,
                "without a token only by address, or as localhost",
            );
        }
        Err(why @ (Denied::OtherFunction | Denied::NotOperator)) => {
            return refuse(StatusCode::FORBIDDEN, &why.to_string());
        }
        Err(why) => {
            let mut response = refuse(StatusCode::UNAUTHORIZED, &why.to_string());
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return response;
        }
    }
    let Ok(_permit) = page.asked.try_acquire() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "too many ask at once");
    };
    next.run(request).await
}

/// Whether the caller knows this machine by an address, not by a name that somebody else may have given it.
fn is_by_address(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || bare.parse::<std::net::IpAddr>().is_ok()
}

/// What the page has seen already; nothing, unless it says so.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    event: u64,
    sample: u64,
}

impl Seen {
    /// `event=12&sample=34`.
    fn of(query: &str) -> Self {
        let number = |key: &str| {
            let pair = query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
            pair.and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        Self { event: number("event"), sample: number("sample") }
    }
}

async fn cluster(State(page): State<Page>, uri: Uri) -> Response {
    let seen = Seen::of(uri.query().unwrap_or_default());
    let sources = &page.sources;
    let rows = sources
        .driver
        .look(|driver, now| (driver.node_rows(now), driver.function_rows(), driver.sandbox_rows(now)))
        .await;
    let rows = match rows {
        Ok(rows) => rows,
        Err(stopped) => return stops(&stopped),
    };
    let events = sources.hub.recent(seen.event, EVENTS_MAX);
    let last = events.last().map_or(seen.event, |event| event.id.get());
    answer(&ClusterView {
        memory: page.memory().after(seen.sample),
        events,
        last_event: last.to_string(),
        ..ClusterView::new(rows, sources.registry.size(), &sources.latencies.told())
    })
}

async fn sandbox(State(page): State<Page>, Path(name): Path<String>) -> Response {
    let Ok(id) = name.parse::<SandboxId>() else {
        return refuse(StatusCode::BAD_REQUEST, "that does not name a sandbox (they look like sb-1-17)");
    };
    let look = page.sources.driver.look(move |driver, now| (driver.sandbox_row(now, id), driver.home_of(id)));
    let (row, home) = match look.await {
        Ok(found) => found,
        Err(stopped) => return stops(&stopped),
    };
    let explained = page.sources.hub.explain(id);
    if row.is_none() && explained.is_none() {
        return refuse(StatusCode::NOT_FOUND, &format!("nothing is known about {id}"));
    }
    let heat = picture(&page.sources.agents, row.as_ref(), home).await;
    answer(&OneView::new(row.as_ref(), explained.unwrap_or_default(), heat))
}

/// Where a sandbox's memory is, or why that cannot be told.
async fn picture(
    agents: &Agents,
    row: Option<&SandboxRow>,
    home: Option<(medes_proto::ids::NodeId, String)>,
) -> Result<Picture, String> {
    let (Some(row), Some((node, address))) = (row, home) else { return Err("it is gone".into()) };
    let reply = agents.heat((&node, &address), row.report.id).await;
    let reply = reply.map_err(|error| match error {
        InvokeError::Lost { source, .. } => source.message().to_owned(),
        other => Failure::from_error(FailureKind::Internal, &other).message,
    })?;
    let map = HeatMap::try_from(reply).map_err(|error| error.to_string())?;
    Ok(Picture::from(&map))
}

fn answer<T: Serialize>(value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], Body::from(json)).into_response(),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn refuse(status: StatusCode, why: &str) -> Response {
    let body = serde_json::json!({ "error": why });
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

fn stops(stopped: &Stopped) -> Response {
    refuse(StatusCode::SERVICE_UNAVAILABLE, &stopped.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_no_name_of_somebody_else() {
        let is = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
            is_by_address(&headers)
        };
        for good in
            ["127.0.0.1", "127.0.0.1:80", "localhost", "LocalHost:7090", "[::1]", "[::1]:7090", "10.0.0.3:1"]
        {
            assert!(is(good), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "evil.example:7090",
            "127.0.0.1.evil.example",
            "localhost.evil.example:1",
            "1:2:3",
        ] {
            assert!(!is(bad), "{bad}");
        }
        assert!(!is_by_address(&HeaderMap::new()));
    }

    #[test]
    fn who_says_nothing_sensible_has_seen_nothing() {
        assert_eq!(Seen::of("event=12&sample=34"), Seen { event: 12, sample: 34 });
        assert_eq!(Seen::of("sample=34"), Seen { event: 0, sample: 34 });
        for nothing in ["", "event", "event=", "event=-1", "events=5", "event=x&sample=18446744073709551616"]
        {
            assert_eq!(Seen::of(nothing), Seen::default(), "{nothing}");
        }
    }

    /// What the policy allows is what the files need.
    #[test]
    fn the_files_need_nothing_from_elsewhere_and_nothing_inline() {
        let (html, script, style) =
            (include_str!("page/index.html"), include_str!("page/page.js"), include_str!("page/page.css"));
        for (what, text) in
            [("http:", html), ("https:", html), ("style=", html), ("onclick", html), ("javascript:", html)]
        {
            assert!(!text.contains(what), "{what}");
        }
        assert!(!html.contains("<script>") && html.contains("<script src=\"page.js\" defer></script>"));
        for what in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"]
        {
            assert!(!script.contains(what), "{what}");
        }
        assert_eq!(script.matches("http").count(), 1, "XML's name of pictures is no address");
        assert!(!style.contains("url(") && !style.contains("@import"));
    }
}
