//! Signing in through the API's OpenID provider: at a terminal with a code that somebody enters anywhere, or with a browser on this machine.
//!
//! The API talks to the provider; this program brings codes and keeps the verifier. Not here: how tokens are kept (`credentials`).

use std::time::Duration;

use envforge_domain::secret::Secret;
use envforge_identity::oidc::Challenge;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::Context;
use super::client::{CLIENT, Client};
use super::credentials::Account;
use super::failure::Failure;
use super::output::printable;

/// How long a person may take, whatever the provider says.
const PATIENCE: Duration = Duration::from_secs(30 * 60);
/// RFC 8628 3.5: after `slow_down`, for good.
const SLOWER: Duration = Duration::from_secs(5);
/// A browser's request to us has a few hundred bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEAD_WAIT_MAX: Duration = Duration::from_secs(5);

/// How somebody signs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Password,
    /// A code that is entered on another screen.
    Device,
    /// A browser on this machine; `port`: where it is answered, 0 for a free one.
    Browser {
        port: u16,
    },
}

/// The API's answer to how one can sign in.
#[derive(Deserialize)]
struct Providers {
    items: Vec<Provider>,
}

#[derive(Deserialize)]
struct Provider {
    id: String,
    #[serde(default)]
    flows: Vec<String>,
}

#[derive(Deserialize)]
struct Device {
    device_code: String,
    user_code: String,
    verification_uri: String,
    verification_uri_complete: Option<String>,
    expires_in: u64,
    interval: u64,
}

#[derive(Deserialize)]
struct LoopbackUrl {
    url: String,
}

/// The way to sign in where nobody named one: through the API's provider, where it has one.
pub(super) async fn usual_way(client: &Client) -> Result<Way, Failure> {
    let answer = match client.get_unsigned(&["v1", "auth", "providers"]).await {
        Ok(answer) => answer,
        // An API from before there were providers.
        Err(Failure::Refused(problem)) if problem.status == 404 => return Ok(Way::Password),
        Err(failure) => return Err(failure),
    };
    let providers: Providers = answer.view()?;
    let has_device = |provider: &Provider| provider.id == "oidc" && provider.flows.iter().any(|flow| flow == "device");
    Ok(if providers.items.iter().any(has_device) { Way::Device } else { Way::Password })
}

/// Signs in with a code that is entered on another screen.
pub(super) async fn device(context: &Context) -> Result<(Account, Value), Failure> {
    let Context { output, settings, client } = context;
    let asked = json!({ "organization": settings.org });
    client.forget_position();
    let asked_at_ms = output.instants.now_unix_millis();
    let device: Device = client.post_unsigned(&["v1", "auth", "oidc", "device"], asked).await?.view()?;
    let shown = json!({
        "verification_uri": device.verification_uri, "verification_uri_complete": device.verification_uri_complete,
        "user_code": device.user_code, "expires_in": device.expires_in,
    });
    if output.json {
        output.event(&shown)?;
    }
    output.note(&format!(
        "Open {}\nand enter the code {}",
        printable(&device.verification_uri),
        output.bold(&printable(&device.user_code))
    ));
    if let Some(complete) = &device.verification_uri_complete {
        output.note(&output.dim(&format!("or open {}", printable(complete))));
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(device.expires_in).min(PATIENCE);
    let mut interval = Duration::from_secs(device.interval.clamp(1, 60));
    let body = json!({ "device_code": device.device_code, "client": CLIENT });
    while tokio::time::Instant::now() < deadline {
        tokio::time::sleep(interval).await;
        let answer = match client.post_unsigned(&["v1", "auth", "oidc", "device", "token"], body.clone()).await {
            Ok(answer) => answer,
            // The person is still at it; the API or its provider may be back by the next question.
            Err(Failure::Unreachable(_) | Failure::TimedOut(_)) => continue,
            Err(Failure::Refused(problem)) if matches!(problem.status, 429 | 502..=504) => {
                interval += SLOWER;
                continue;
            }
            Err(failure) => return Err(failure),
        };
        match answer.body.get("status").and_then(Value::as_str) {
            None => return client.keep(answer, None, asked_at_ms).await,
            Some("slow_down") => interval += SLOWER,
            Some(_) => {}
        }
    }
    Err(Failure::timed_out("nobody entered the code in time", "run `envforge login` again"))
}

/// Signs in with a browser on this machine, which brings one answer to a port of ours.
pub(super) async fn browser(context: &Context, port: u16) -> Result<(Account, Value), Failure> {
    let Context { output, settings, client } = context;
    let listener = TcpListener::bind(("127.0.0.1", port)).await.map_err(|error| {
        Failure::local(
            format!("cannot listen on 127.0.0.1:{port} for the browser's answer: {error}"),
            "name a free one: --port PORT",
        )
    })?;
    let port = listener.local_addr()?.port();
    let (state, nonce, verifier) = (random()?, random()?, random()?);
    let begin = json!({
        "port": port, "state": state.expose(), "nonce": nonce.expose(),
        "code_challenge": Challenge::of(&verifier).as_str(), "organization": settings.org,
    });
    client.forget_position();
    let begun: LoopbackUrl = client.post_unsigned(&["v1", "auth", "oidc", "loopback"], begin).await?.view()?;
    if output.json {
        output.event(&json!({ "url": begun.url }))?;
    }
    output.note(&format!("Sign in with your browser; if it does not open, open\n{}", printable(&begun.url)));
    open(&begun.url);
    let waiting = tokio::time::timeout(PATIENCE, answer(&listener, &state));
    let code = waiting.await.map_err(|_| {
        Failure::timed_out("the browser brought no answer in time", "run `envforge login --browser` again")
    })??;
    drop(listener);
    let sent_at_ms = output.instants.now_unix_millis();
    let trade = json!({
        "port": port, "nonce": nonce.expose(), "code": code.expose(), "code_verifier": verifier.expose(), "client": CLIENT,
    });
    let answer = client.post_unsigned(&["v1", "auth", "oidc", "loopback", "token"], trade).await?;
    client.keep(answer, None, sent_at_ms).await
}

/// 256 bits as text.
fn random() -> Result<Secret, Failure> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::local(format!("this machine gives no randomness: {error}"), ""))?;
    Ok(Secret::new(hex::encode(bytes)))
}

/// Shows a page in the person's browser. Where there is none, the address was printed.
fn open(url: &str) {
    let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let quiet = std::process::Stdio::null;
    // One argument, no shell: the address is somebody else's text.
    let _ = tokio::process::Command::new(program).arg(url).stdin(quiet()).stdout(quiet()).stderr(quiet()).spawn();
}

/// The one answer with our state. Whatever else comes to the port is turned away: other programs of this machine can reach it.
async fn answer(listener: &TcpListener, state: &Secret) -> Result<Secret, Failure> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        let head = tokio::time::timeout(HEAD_WAIT_MAX, head(&mut stream)).await;
        let Ok(Ok(head)) = head else { continue };
        let answer = Answer::read(&head, state);
        let (status, text) = match &answer {
            Some(Answer::Code(_)) => ("200 OK", "You are signed in. You can close this window."),
            Some(Answer::Refused(_)) => {
                ("200 OK", "You are not signed in. The terminal says why; you can close this window.")
            }
            None => ("404 Not Found", "This is not the page that envforge waits for."),
        };
        let page = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nCache-Control: no-store\r\nReferrer-Policy: no-referrer\r\nConnection: close\r\n\r\n{text}",
            text.len()
        );
        // Whether the page arrives does not matter for the terminal.
        let _ = tokio::time::timeout(HEAD_WAIT_MAX, stream.write_all(page.as_bytes())).await;
        match answer {
            Some(Answer::Code(code)) => return Ok(code),
            Some(Answer::Refused(error)) => {
                let what = format!("the identity provider did not sign you in: {}", printable(&error));
                return Err(Failure::signed_out(what, "run `envforge login --browser` again"));
            }
            None => {}
        }
    }
}

async fn head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    let mut block = [0_u8; 2_048];
    loop {
        let count = stream.read(&mut block).await?;
        bytes.extend_from_slice(&block[..count]);
        if count == 0 || bytes.windows(4).any(|end| end == b"\r\n\r\n") {
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
        if bytes.len() > HEAD_BYTES_MAX {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
    }
}

enum Answer {
    Code(Secret),
    Refused(String),
}

impl Answer {
    /// `None` for whatever is not the answer to our request.
    fn read(head: &str, state: &Secret) -> Option<Self> {
        let target = head.lines().next()?.strip_prefix("GET ")?.split(' ').next()?;
        let url = reqwest::Url::parse(&format!("http://127.0.0.1{target}")).ok()?;
        if url.path() != "/callback" || url.host_str() != Some("127.0.0.1") {
            return None;
        }
        let parameter = |name: &str| {
            let mut found = url.query_pairs().filter(|(known, _)| known == name).map(|(_, value)| value.into_owned());
            let first = found.next();
            if found.next().is_some() { None } else { first }
        };
        if !state.matches(&parameter("state")?) {
            return None;
        }
        match (parameter("code"), parameter("error")) {
            (Some(code), None) => Some(Self::Code(Secret::new(code))),
            (_, Some(error)) => Some(Self::Refused(error.chars().take(100).collect())),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Option<String> {
        let state = Secret::new("the-state".to_owned());
        match Answer::read(&format!("{line}\r\nHost: 127.0.0.1\r\n\r\n"), &state)? {
            Answer::Code(code) => Some(format!("code {}", code.expose())),
            Answer::Refused(error) => Some(format!("refused {error}")),
        }
    }

    #[test]
    fn only_the_answer_to_our_own_request_counts() {
        assert_eq!(read("GET /callback?code=a%2Fb&state=the-state HTTP/1.1").as_deref(), Some("code a/b"));
        assert_eq!(
            read("GET /callback?error=access_denied&state=the-state HTTP/1.1").as_deref(),
            Some("refused access_denied")
        );
        for wrong in [
            "GET /callback?code=a&state=another HTTP/1.1",
            "GET /callback?code=a HTTP/1.1",
            "GET /callback?state=the-state HTTP/1.1",
            "GET /callback?code=a&state=the-state&state=another HTTP/1.1",
            "GET /other?code=a&state=the-state HTTP/1.1",
            "GET /favicon.ico HTTP/1.1",
            "POST /callback?code=a&state=the-state HTTP/1.1",
            "GET @evil.example/callback?code=a&state=the-state HTTP/1.1",
            "nonsense",
            "",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn whatever_else_comes_to_the_port_is_turned_away_and_the_answer_is_still_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = random().unwrap();
        let ask = async |line: String| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(format!("{line}\r\n\r\n").as_bytes()).await.unwrap();
            let mut page = String::new();
            stream.read_to_string(&mut page).await.unwrap();
            page
        };
        let browser = async {
            drop(TcpStream::connect(address).await.unwrap());
            assert!(ask("GET /callback?code=evil&state=guessed HTTP/1.1".to_owned()).await.starts_with("HTTP/1.1 404"));
            assert!(ask("GET /favicon.ico HTTP/1.1".to_owned()).await.starts_with("HTTP/1.1 404"));
            ask(format!("GET /callback?code=good&state={} HTTP/1.1", state.expose())).await
        };
        let (code, page) = tokio::join!(answer(&listener, &state), browser);
        assert!(code.unwrap().matches("good"));
        assert!(page.contains("You are signed in"), "{page}");
    }
}
