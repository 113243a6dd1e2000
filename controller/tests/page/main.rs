//! The page for people: who is let in, what is answered, and how it looks and behaves in a real browser.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod browser;
#[path = "../support/mod.rs"]
mod support;

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::Full;
use medes_proto::wire::{self, tokens_client::TokensClient};
use serde_json::{Value, json};
use support::{Agent, Answered, Cluster, caller, until};

use browser::Browser;

/// A cluster with a node, a sandbox that has answered and one in dedup.
async fn lively() -> (tempfile::TempDir, Cluster, Agent) {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(folder.path(), &[]).await;
    for name in ["thumbnail", "login", "broken"] {
        cluster
            .apply(&format!("name = '{name}'\ncommand = ['x', '--secret=PLANTED']\n[env]\nKEY = 'PLANTED'"))
            .await;
    }
    let agent = Agent::start("n1", cluster.controller.control).await;
    cluster.until_nodes(1).await;
    for path in ["/invoke/thumbnail", "/invoke/thumbnail", "/invoke/broken"] {
        cluster.call(path).await;
    }
    let sandbox = cluster.start_sandbox("login").await.id;
    cluster.dedup(sandbox).await;
    (folder, cluster, agent)
}

fn page(cluster: &Cluster) -> SocketAddr {
    cluster.controller.page.unwrap()
}

async fn get(cluster: &Cluster, path: &str, token: Option<&str>) -> Answered {
    let mut request = hyper::Request::get(path);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    caller(page(cluster), request.body(Full::default()).unwrap()).await
}

async fn token(cluster: &Cluster, name: &str, operator: bool) -> String {
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", cluster.controller.control));
    let mut tokens = TokensClient::new(channel.unwrap().connect().await.unwrap());
    let request = wire::CreateTokenRequest { name: name.into(), functions: Vec::new(), operator };
    tokens.create(request).await.unwrap().into_inner().token
}

#[tokio::test]
async fn operators_are_let_in_and_nobody_else_once_there_is_a_token() {
    let (_folder, cluster, _agent) = lively().await;
    let data = ["/data/cluster", "/data/sandbox/sb-1-1"];
    // Everything is plain, and there is no token: whoever reaches the control port could ask the same there.
    assert_eq!(get(&cluster, "/door", None).await.json(), json!({ "asks": false }));
    assert_eq!(get(&cluster, data[0], None).await.status, 200);
    let operator = token(&cluster, "anna", true).await;
    let function = token(&cluster, "shop", false).await;
    assert_eq!(get(&cluster, "/door", None).await.json(), json!({ "asks": true }));
    for path in data {
        let denied = get(&cluster, path, None).await;
        assert_eq!((denied.status, denied.header("www-authenticate")), (401, "Bearer"), "{path}");
        assert_eq!(get(&cluster, path, Some("medes_anna_00")).await.status, 401, "{path}");
        assert_eq!(get(&cluster, path, Some(&function)).await.status, 403, "{path}");
        assert_eq!(get(&cluster, path, Some(&operator)).await.status, 200, "{path}");
    }
    // And an operator's token opens no function.
    let shown =
        hyper::Request::post("/invoke/thumbnail").header("authorization", format!("Bearer {operator}"));
    assert_eq!(cluster.send(shown.body(Full::<Bytes>::default()).unwrap()).await.status, 403);
    for path in ["/data", "/data/", "/data/nodes", "/metrics", "/page.map", "/..%2f"] {
        assert_eq!(get(&cluster, path, Some(&operator)).await.status, 404, "{path}");
    }
    assert_eq!(get(&cluster, "/data/sandbox/sb-9-9", Some(&operator)).await.status, 404);
    assert_eq!(get(&cluster, "/data/sandbox/x%3Cb%3E", Some(&operator)).await.status, 400);
}

#[tokio::test]
async fn without_a_token_no_name_of_somebody_else_leads_here() {
    let (_folder, cluster, _agent) = lively().await;
    let ask = async |host: &str| {
        let stream = tokio::net::TcpStream::connect(page(&cluster)).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        let connection = tokio_util::task::TaskTracker::new().spawn(connection);
        let request = hyper::Request::get("/data/cluster").header("host", host);
        let answer = sender.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
        connection.abort();
        answer.status().as_u16()
    };
    assert_eq!((ask("localhost:1").await, ask("evil.example").await), (200, 421));
}

#[tokio::test]
async fn what_is_told_is_what_there_is_and_no_secret() {
    let (_folder, cluster, _agent) = lively().await;
    let answer = get(&cluster, "/data/cluster", None).await;
    assert!(!String::from_utf8_lossy(&answer.body).contains("PLANTED"), "functions' files are not shown");
    let told = answer.json();
    assert_eq!((&told["nodes"][0]["node"], &told["nodes"][0]["standing"]), (&json!("n1"), &json!("open")));
    let names: Vec<_> = told["functions"].as_array().unwrap().iter().map(|row| &row["function"]).collect();
    assert_eq!(names, ["broken", "login", "thumbnail"]);
    let states: Vec<_> = told["sandboxes"].as_array().unwrap().iter().map(|row| &row["state"]).collect();
    assert_eq!((states, &told["sandboxes_in_all"]), (vec![&json!("warm"), &json!("dedup")], &json!(2)));
    let start = |kind: &str| {
        let row = told["starts"].as_array().unwrap().iter().find(|row| row["start"] == kind).unwrap();
        (row["answers"].as_u64().unwrap(), row["p50_micros"].as_u64().unwrap() >= 12_000)
    };
    assert_eq!((start("cold"), start("warm"), start("clone")), ((1, true), (1, true), (0, false)));
    let kinds: Vec<_> = told["events"].as_array().unwrap().iter().map(|event| &event["kind"]).collect();
    assert!(kinds.contains(&&json!("start")) && kinds.contains(&&json!("error")), "{kinds:?}");
    // Only what is new, the next time.
    let path = format!("/data/cluster?event={}", told["last_event"].as_str().unwrap());
    let next = get(&cluster, &path, None).await.json();
    assert_eq!((&next["events"], &next["last_event"]), (&json!([]), &told["last_event"]));
    let sampled = async || get(&cluster, "/data/cluster", None).await.json()["memory"].get(0).cloned();
    let sample = until("memory is sampled", sampled).await;
    let later = format!("/data/cluster?sample={}", sample["unix_ms"]);
    assert!(get(&cluster, &later, None).await.json()["memory"].as_array().unwrap().len() <= 1);
    let sandbox = told["sandboxes"][0]["sandbox"].as_str().unwrap();
    let one = get(&cluster, &format!("/data/sandbox/{sandbox}"), None).await.json();
    assert_eq!((&one["now"]["sandbox"], &one["heat"]["source"]), (&json!(sandbox), &json!("procfs")));
    assert!(!one["history"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn nothing_may_be_run_that_is_not_one_of_the_files() {
    let (_folder, cluster, _agent) = lively().await;
    for (path, kind) in [
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
        ("/door", "application/json"),
    ] {
        let answer = get(&cluster, path, None).await;
        assert!(answer.status == 200 && answer.header("content-type").starts_with(kind), "{path}");
        let policy = answer.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
        assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("cache-control"), "no-store");
    }
    let posted = hyper::Request::post("/data/cluster").body(Full::default()).unwrap();
    assert_eq!(caller(page(&cluster), posted).await.status, 405);
}

/// What somebody does who comes to the page without a token, and what is to be seen.
fn visit(browser: &mut Browser, url: &str, token: &str) {
    browser.look_like((1280, 900), "light");
    browser.go(url);
    browser.until("!document.getElementById('door').hidden");
    assert_eq!(browser.errors(), [""; 0], "the door is shown without running into it");
    assert_eq!(browser.value("document.getElementById('main').hidden"), json!(true));
    assert_eq!(
        browser.value("document.querySelectorAll('td').length"),
        json!(0),
        "nothing is told without a token"
    );
    browser.photograph("door-light");
    assert_eq!(browser.value("document.activeElement.id"), json!("token"));
    browser.write("medes_anna_00");
    browser.key("Enter");
    browser.until("document.getElementById('denied').textContent.includes('not good')");
    let denied = browser.errors();
    assert!(denied.len() == 1 && denied[0].contains("401"), "only that it was denied: {denied:?}");
    browser.write(token);
    browser.key("Enter");
    browser.until("document.querySelectorAll('#sandbox-table tbody tr').length === 2");
    browser.until("document.querySelectorAll('#chart path').length === 5");
    browser.until("document.querySelectorAll('#events li').length > 3");
    // The second sample is the first one that has seen the sandboxes.
    browser
        .until("document.querySelector('#chart svg').getAttribute('aria-label').includes('warm 32.0 MiB')");
}

/// Text from elsewhere stays text.
fn hostile(browser: &mut Browser) {
    let lacks = browser.value("document.querySelector('#node-table td.text').textContent");
    assert!(lacks.as_str().unwrap().contains("<img src=x onerror="), "{lacks}");
    assert_eq!(
        browser.value("document.querySelectorAll('main img, dialog img, script').length"),
        json!(1),
        "our own script"
    );
    assert_eq!(browser.value("typeof window.pwned"), json!("undefined"));
}

/// With nothing but a keyboard: to the filter, to a sandbox, into its dialogue and out of it again.
fn by_keyboard(browser: &mut Browser) {
    browser.key("/");
    assert_eq!(browser.value("document.activeElement.id"), json!("filter"));
    browser.write("thumb");
    browser.until("document.querySelectorAll('#sandbox-table tbody tr').length === 1");
    browser.key("Tab");
    browser.key("Tab");
    let focused = browser.value("document.activeElement.getAttribute('aria-label')");
    assert!(focused.as_str().unwrap().starts_with("Look at sb-"), "{focused}");
    let outline = browser.value("getComputedStyle(document.activeElement).outlineStyle");
    assert_eq!(outline, json!("solid"), "it is seen where one is");
    browser.key("Enter");
    browser.until("document.getElementById('one').open");
    browser.until("document.querySelectorAll('#heat rect.class-hot').length > 0");
    assert_eq!(browser.value("document.getElementById('one').contains(document.activeElement)"), json!(true));
    hostile(browser);
    browser.photograph("sandbox-light");
    browser.key("Escape");
    browser.until("!document.getElementById('one').open");
    assert_eq!(
        browser.value("document.activeElement.getAttribute('aria-label')"),
        focused,
        "back where one was"
    );
    // The first button of the dialogue closes it as well.
    browser.key("Enter");
    browser.until("document.getElementById('one').open");
    browser.key("Enter");
    browser.until("!document.getElementById('one').open");
}

/// Every text is there for a screen of any size and either scheme, and nothing is wider than the screen.
fn in_every_light(browser: &mut Browser) {
    let fits = "document.documentElement.scrollWidth <= window.innerWidth";
    for (name, size, scheme) in [
        ("light", (1280, 1600), "light"),
        ("dark", (1280, 1600), "dark"),
        ("phone-light", (390, 844), "light"),
        ("phone-dark", (390, 844), "dark"),
    ] {
        browser.look_like(size, scheme);
        browser.value("scrollTo(0, 0)");
        assert_eq!(browser.value(fits), json!(true), "{name}");
        browser.photograph(name);
        let ground = browser.value("getComputedStyle(document.body).backgroundColor");
        assert_eq!(ground == json!("rgb(20, 23, 27)"), scheme == "dark", "{ground}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn people_can_use_it_in_a_browser() {
    let Some(program) = browser::find() else {
        println!("SKIPPED people_can_use_it_in_a_browser: no chromium; apt-get install chromium");
        return;
    };
    let (_folder, cluster, _agent) = lively().await;
    let token = token(&cluster, "anna", true).await;
    let url = format!("http://{}/", page(&cluster));
    let visited = tokio::task::spawn_blocking(move || {
        let mut browser = Browser::start(&program);
        visit(&mut browser, &url, &token);
        hostile(&mut browser);
        by_keyboard(&mut browser);
        in_every_light(&mut browser);
        assert_eq!(browser.errors(), [""; 0]);
        // The token is this tab's alone, and can be forgotten.
        browser.value("document.getElementById('leave').click()");
        browser.until("document.getElementById('door')?.hidden === false");
        assert_eq!(browser.value("sessionStorage.length"), Value::from(0));
    });
    visited.await.unwrap();
}
