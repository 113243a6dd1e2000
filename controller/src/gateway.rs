//! The HTTP gateway: `/invoke/{function}/...`. A request goes to the function as it came, its answer comes back as
//! it was, with headers that say how it was served.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use medes_proto::{
    failure::{Failure, FailureKind},
    ids::{FunctionName, SandboxId},
    limits,
    node::{Header, Request as FunctionRequest},
    sandbox::Phase,
};

use crate::{
    driver::Refusal,
    invoke::{Answered, Call, Invoker},
    tokens::{Admitted, Denied, Tokens},
};

/// From a caller: how long it waits, in milliseconds.
const DEADLINE: &str = "x-medes-deadline-ms";
/// From a caller: a sandbox it would like.
const PREFER: &str = "x-medes-prefer-sandbox";
/// To the caller.
const START: HeaderName = HeaderName::from_static("x-medes-start");
const SANDBOX: HeaderName = HeaderName::from_static("x-medes-sandbox");
const NODE: HeaderName = HeaderName::from_static("x-medes-node");
const PHASES: HeaderName = HeaderName::from_static("x-medes-phases");

/// A body that does not come in this time is not worth its memory.
const BODY_WAIT_MAX: Duration = Duration::from_secs(30);
/// What a caller that finds the queue full is told to wait.
const RETRY_AFTER_SECONDS: &str = "1";

/// Headers between two neighbours, not between caller and function (RFC 9110, 7.6.1), and those that the last
/// hop writes anew.
const HOP_BY_HOP: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What every request needs.
#[derive(Debug, Clone)]
pub(crate) struct Gateway {
    pub(crate) invoker: Arc<Invoker>,
    pub(crate) tokens: Arc<Tokens>,
}

/// The gateway's routes.
pub(crate) fn router(gateway: Gateway) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/invoke/{function}", any(invoke))
        .route("/invoke/{function}/", any(invoke))
        .route("/invoke/{function}/{*path}", any(invoke))
        .with_state(gateway)
}

/// Whether a request that came now would find a node. Alive without being ready is normal for a moment after a start.
async fn ready(State(Gateway { invoker, .. }): State<Gateway>) -> Response {
    match invoker.nodes_open().await {
        Ok(0) => (StatusCode::SERVICE_UNAVAILABLE, "no node takes work\n").into_response(),
        Ok(_) => "ready\n".into_response(),
        Err(stopped) => (StatusCode::SERVICE_UNAVAILABLE, format!("{stopped}\n")).into_response(),
    }
}

async fn invoke(
    State(Gateway { invoker, tokens }): State<Gateway>,
    Path(path): Path<std::collections::HashMap<String, String>>,
    mut request: Request,
) -> Response {
    // A name that cannot be a function's is the name of no function.
    let Some(Ok(function)) = path.get("function").map(|name| name.parse::<FunctionName>()) else {
        return refuse(Refusal::UnknownFunction);
    };
    let shown = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    match tokens.admit(shown, &function) {
        Ok(Admitted::Unasked) => {}
        // It was for us, and could be used again by whoever sees it.
        Ok(Admitted::ByToken) => drop(request.headers_mut().remove(header::AUTHORIZATION)),
        Err(why) => return deny(why),
    }
    let call = match read_call(&invoker, function, request).await {
        Ok(call) => call,
        Err(response) => return response,
    };
    match invoker.call(call).await {
        Ok(answered) => answer(answered),
        Err(why) => refuse(why),
    }
}

fn deny(why: Denied) -> Response {
    let (status, kind) = match why {
        Denied::Missing | Denied::Unknown => (StatusCode::UNAUTHORIZED, "unauthenticated"),
        Denied::OtherFunction | Denied::NotOperator => (StatusCode::FORBIDDEN, "permission_denied"),
    };
    metrics::counter!("medes_requests_total", "outcome" => "denied").increment(1);
    let mut response = error(status, kind, &why.to_string());
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// Everything about a request that can be wrong before it is any function's business.
async fn read_call(invoker: &Invoker, function: FunctionName, request: Request) -> Result<Call, Response> {
    let settings = *invoker.settings();
    let (parts, body) = request.into_parts();
    let bad = |what: &str| error(StatusCode::BAD_REQUEST, "invalid", what);
    let text = |name| parts.headers.get(name).map(HeaderValue::to_str).transpose();
    let deadline = match text(DEADLINE).map(|text| text.map(str::parse::<u64>).transpose()) {
        Ok(Ok(None)) => None,
        Ok(Ok(Some(ms))) if (1..=settings.deadline_max.as_millis()).contains(&u128::from(ms)) => {
            Some(Duration::from_millis(ms))
        }
        _ => {
            let most = settings.deadline_max.as_millis();
            return Err(bad(&format!("{DEADLINE} is not a whole number from 1 to {most}")));
        }
    };
    let prefer = match text(PREFER).map(|text| text.map(str::parse::<SandboxId>).transpose()) {
        Ok(Ok(prefer)) => prefer,
        _ => return Err(bad(&format!("{PREFER} does not name a sandbox (they look like sb-1-17)"))),
    };
    let headers = end_to_end(&parts.headers);
    if headers.len() > limits::HEADERS_MAX {
        return Err(error(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "invalid", "too many headers"));
    }
    // `/invoke/name` and what follows; the router has seen to the beginning.
    let path = parts.uri.path().splitn(4, '/').nth(3).unwrap_or_default();
    let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let method = parts.method.as_str().to_owned();
    let body = read_body(body, settings.body_max).await?;
    let request = FunctionRequest { method, path: format!("/{path}{query}"), headers, body };
    Ok(Call { function, prefer, deadline, request })
}

async fn read_body(body: Body, max: usize) -> Result<Bytes, Response> {
    let whole = Limited::new(body, max).collect();
    match tokio::time::timeout(BODY_WAIT_MAX, whole).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(why)) if why.is::<LengthLimitError>() => {
            let text = format!("the body is larger than {max} bytes");
            Err(error(StatusCode::PAYLOAD_TOO_LARGE, "invalid", &text))
        }
        Ok(Err(_broken)) => Err(error(StatusCode::BAD_REQUEST, "invalid", "the body ended too early")),
        Err(_elapsed) => Err(error(StatusCode::REQUEST_TIMEOUT, "deadline", "the body did not come in time")),
    }
}

/// Headers that are for the function. What `Connection` names is for this hop only, too.
fn end_to_end(headers: &HeaderMap) -> Vec<Header> {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    headers
        .iter()
        .filter(|(name, _)| {
            !HOP_BY_HOP.contains(&name.as_str())
                && !named.iter().any(|hop| hop == name.as_str())
                && ![DEADLINE, PREFER].contains(&name.as_str())
        })
        .map(|(name, value)| (name.as_str().to_owned(), Bytes::copy_from_slice(value.as_bytes())))
        .collect()
}

fn answer(answered: Answered) -> Response {
    let Answered { answer, start, sandbox, node, phases } = answered;
    let mut response = Response::new(Body::from(answer.body));
    let Ok(status) = StatusCode::from_u16(answer.status) else {
        return error(StatusCode::BAD_GATEWAY, "internal", "the function's status is no HTTP status");
    };
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in answer.headers {
        // What the function wrote and HTTP does not allow is left out, and so is what is for its own hop.
        let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_maybe_shared(value))
        else {
            continue;
        };
        if !HOP_BY_HOP.contains(&name.as_str()) {
            headers.append(name, value);
        }
    }
    headers.insert(START, HeaderValue::from_static(start.word()));
    for (name, text) in
        [(SANDBOX, sandbox.to_string()), (NODE, node.to_string()), (PHASES, phase_list(&phases))]
    {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    }
    response
}

/// `queue=0.1,restore=35.2,function=12.0`, in milliseconds.
fn phase_list(phases: &[Phase]) -> String {
    let ms = |phase: &Phase| format!("{}={:.1}", phase.name, phase.took.as_secs_f64() * 1_000.0);
    phases.iter().map(ms).collect::<Vec<_>>().join(",")
}

fn refuse(why: Refusal) -> Response {
    let status = match &why {
        Refusal::UnknownFunction => StatusCode::NOT_FOUND,
        Refusal::QueueFull => StatusCode::TOO_MANY_REQUESTS,
        Refusal::Deadline { .. } => StatusCode::GATEWAY_TIMEOUT,
        Refusal::Failed(_) | Refusal::NodeLost(_) => StatusCode::BAD_GATEWAY,
        Refusal::Stopping => StatusCode::SERVICE_UNAVAILABLE,
    };
    let kind = match &why {
        Refusal::QueueFull => "queue_full",
        Refusal::UnknownFunction => "unknown_function",
        Refusal::NodeLost(_) => "node_lost",
        Refusal::Deadline { .. } => "deadline",
        Refusal::Stopping => "stopping",
        Refusal::Failed(failure) => kind_word(failure.kind),
    };
    let mut response = error_with_log(status, kind, &why.into_failure());
    if status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
    }
    response
}

fn error(status: StatusCode, kind: &str, message: &str) -> Response {
    error_with_log(status, kind, &Failure::new(FailureKind::Invalid, message))
}

fn error_with_log(status: StatusCode, kind: &str, failure: &Failure) -> Response {
    let body = serde_json::json!({ "error": failure.message, "kind": kind, "log_tail": failure.log_tail });
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

const fn kind_word(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Unspecified => "unspecified",
        FailureKind::NotFound => "not_found",
        FailureKind::Busy => "busy",
        FailureKind::CommandNotFound => "command_not_found",
        FailureKind::NeverReady => "never_ready",
        FailureKind::OutOfMemory => "out_of_memory",
        FailureKind::Crashed => "crashed",
        FailureKind::DumpRefused => "dump_refused",
        FailureKind::DedupFailed => "dedup_failed",
        FailureKind::RestoreFailed => "restore_failed",
        FailureKind::Corrupt => "corrupt",
        FailureKind::BaseLost => "base_lost",
        FailureKind::NoSpace => "no_space",
        FailureKind::Deadline => "deadline",
        FailureKind::ShuttingDown => "shutting_down",
        FailureKind::Invalid => "invalid",
        FailureKind::Unsupported => "unsupported",
        FailureKind::Internal => "internal",
        FailureKind::Cancelled => "cancelled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hop_by_hop_headers_stay_on_their_hop() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "x-mine, close"),
            ("x-mine", "1"),
            ("transfer-encoding", "chunked"),
            ("x-medes-deadline-ms", "5"),
            ("x-yours", "2"),
            ("cookie", "a"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        headers.append("cookie", HeaderValue::from_static("b"));
        let kept: Vec<_> = end_to_end(&headers).into_iter().map(|(name, _)| name).collect();
        assert_eq!(kept, ["x-yours", "cookie", "cookie"]);
    }

    #[test]
    fn phases_are_milliseconds() {
        let phases = [
            Phase::new("queue", Duration::from_micros(120)),
            Phase::new("restore", Duration::from_micros(35_249)),
        ];
        assert_eq!(phase_list(&phases), "queue=0.1,restore=35.2");
    }
}
