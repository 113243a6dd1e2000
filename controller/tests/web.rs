//! Callers that come over HTTPS, with a certificate that they know.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use medes_controller::{
    config::Config,
    server::{Controller, Place},
};
use medes_identity::{credentials::LoadError, security::Security, web::WebCertificate};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// A certificate for this machine, in files; as a caller trusts it.
fn certificate(folder: &Path) -> (PathBuf, CertificateDer<'static>) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let file = folder.join("web.pem");
    fs::write(folder.join("web-key.pem"), signing_key.serialize_pem()).unwrap();
    fs::write(&file, cert.pem()).unwrap();
    (file, cert.der().clone())
}

async fn controller(folder: &Path, file: &Path) -> Controller {
    let any = "127.0.0.1:0".parse().unwrap();
    let place = Place {
        state_dir: folder.join("state"),
        control: any,
        gateway: any,
        page: Some(any),
        spans: None,
        security: Security::Plaintext,
        web: Some(WebCertificate::load(file, None, SystemTime::now()).unwrap()),
    };
    let config = Config::read("", &["stop.grace=200ms".into()]).unwrap();
    Controller::start(place, config).await.unwrap()
}

async fn get(at: SocketAddr, path: &str, trusted: &CertificateDer<'static>) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(at).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn callers_and_people_come_over_https() {
    let folder = tempfile::tempdir().unwrap();
    let (file, trusted) = certificate(folder.path());
    let controller = controller(folder.path(), &file).await;
    // Somebody who says nothing keeps nobody waiting.
    let silent = TcpStream::connect(controller.gateway).await.unwrap();
    let answer = get(controller.gateway, "/healthz", &trusted).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("ok\n"), "{answer}");
    let page = get(controller.page.unwrap(), "/", &trusted).await.unwrap();
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    let (_, other) = certificate(tempfile::tempdir().unwrap().path());
    let refused = get(controller.gateway, "/healthz", &other).await.unwrap_err();
    assert!(refused.to_string().contains("certificate"), "{refused}");
    drop(silent);
    controller.stop().await;
}

#[tokio::test]
async fn nothing_is_answered_in_the_clear() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = certificate(folder.path());
    let controller = controller(folder.path(), &file).await;
    for at in [controller.gateway, controller.page.unwrap()] {
        let mut plain = TcpStream::connect(at).await.unwrap();
        plain.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut heard = Vec::new();
        // An alert, or only the end.
        let _reset = plain.read_to_end(&mut heard).await;
        assert!(!heard.windows(4).any(|part| part == b"HTTP"), "{heard:?}");
    }
    controller.stop().await;
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (file, first) = certificate(folder.path());
    let controller = controller(folder.path(), &file).await;
    get(controller.gateway, "/healthz", &first).await.unwrap();
    let (_, second) = certificate(folder.path());
    let renewed = async {
        while get(controller.gateway, "/healthz", &second).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), renewed).await.unwrap();
    get(controller.gateway, "/healthz", &first).await.unwrap_err();
    controller.stop().await;
}

#[test]
fn a_certificate_that_cannot_be_used_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = certificate(folder.path());
    let load = |key: Option<&Path>, at| WebCertificate::load(&file, key, at).map(drop);
    load(None, SystemTime::now()).unwrap();
    // rcgen's are valid until 4096.
    let late = SystemTime::UNIX_EPOCH + Duration::from_secs(100_000_000_000);
    assert!(matches!(load(None, late), Err(LoadError::Outdated { .. })));
    let other = tempfile::tempdir().unwrap();
    certificate(other.path());
    let key = other.path().join("web-key.pem");
    assert!(matches!(load(Some(&key), SystemTime::now()), Err(LoadError::Pair { .. })));
    assert!(matches!(
        load(Some(&folder.path().join("none")), SystemTime::now()),
        Err(LoadError::File { .. })
    ));
}
