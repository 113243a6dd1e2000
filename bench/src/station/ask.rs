//! Requests to one of our functions in a sandbox of the station, and what its answers say about the process.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use medes_agent::sandbox::{Housing, Request, Response};
use serde_json::{Value, json};

/// Covers the largest function on a busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(60);
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// An answer of one of our functions.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) result: Value,
    seed: u64,
    served: u64,
}

impl Reply {
    /// Whether `next` is what the same process answers to the same request, right after this one.
    pub(crate) fn continues_in(&self, next: &Self) -> bool {
        self.result == next.result && self.seed == next.seed && self.served + 1 == next.served
    }
}

/// Sends request `n` and checks that it was answered well.
pub(crate) async fn ask(housing: &Housing, n: u64) -> Result<Reply> {
    let mut request = Request::get("/", ANSWER_MAX, ANSWER_BYTES_MAX);
    request.method = hyper::Method::POST;
    request.body = json!({ "n": n }).to_string().into();
    answer(&housing.request(request).await?)
}

fn answer(response: &Response) -> Result<Reply> {
    let text = String::from_utf8_lossy(&response.body);
    ensure!(response.status.is_success(), "the function answered {}: {text}", response.status);
    let mut value: Value = serde_json::from_str(&text).context("read the answer")?;
    let number =
        |value: &Value, key: &str| value[key].as_u64().with_context(|| format!("the answer has no {key}"));
    let (seed, served) = (number(&value, "seed")?, number(&value, "served")?);
    Ok(Reply { result: value["result"].take(), seed, served })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_does_not_continue() {
        let reply = |result: u64, seed, served| Reply { result: json!(result), seed, served };
        assert!(reply(5, 1, 7).continues_in(&reply(5, 1, 8)));
        for other in [reply(6, 1, 8), reply(5, 2, 8), reply(5, 1, 7)] {
            assert!(!reply(5, 1, 7).continues_in(&other), "{other:?}");
        }
    }
}
