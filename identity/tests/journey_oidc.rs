//! Tokens of a real OpenID provider: its keys rotate, it goes away, it is flooded.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use envforge_domain::time::{Clock as _, Millis, UnixMillis};
use envforge_identity::clock::SystemClock;
use envforge_identity::credentials::Credentials;
use envforge_identity::oidc::{Client, Config, InvalidToken, Oidc, TokenError};
use envforge_testkit::{OIDC_GATEWAY_SECRET, OIDC_WEB_SECRET, OidcProvider};
use serde_json::{Value, json};

const JWKS: &str = "/.well-known/jwks.json";

struct World {
    provider: Arc<OidcProvider>,
    oidc: Arc<Oidc>,
    _directory: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let provider = tokio::task::spawn_blocking(OidcProvider::start).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let credentials = Credentials::open_sqlite(&directory.path().join("credentials.sqlite")).await.unwrap();
        let settings = json!({
            "issuer": provider.issuer(), "audience": "https://api.envforge.test", "api_url": "http://127.0.0.1:7070",
            "clients": {
                "web": { "id": "web", "secret_file": "web" }, "cli": { "id": "cli" }, "gateway": { "id": "gateway", "secret_file": "gateway" },
            },
            "organizations": [{ "provider_id": "org_acme", "slug": "acme" }],
        });
        let config = Config::check(serde_json::from_value(settings).unwrap(), |path| {
            Ok(if path.ends_with("web") { OIDC_WEB_SECRET } else { OIDC_GATEWAY_SECRET }.to_owned())
        });
        let oidc = Arc::new(Oidc::new(config.unwrap(), &credentials).unwrap());
        Self { provider: Arc::new(provider), oidc, _directory: directory }
    }

    async fn provider<T: Send + 'static>(&self, lever: impl FnOnce(&OidcProvider) -> T + Send + 'static) -> T {
        let provider = Arc::clone(&self.provider);
        tokio::task::spawn_blocking(move || lever(&provider)).await.unwrap()
    }

    /// A good token of the provider's, but for what is changed.
    async fn token(&self, header: Value, changed: Value) -> String {
        let now = now().get() / 1_000;
        let mut claims = json!({
            "iss": self.provider.issuer(), "aud": "web", "sub": "auth0|ada", "org_id": "org_acme", "iat": now, "exp": now + 86_400,
        });
        for (name, value) in changed.as_object().unwrap() {
            claims[name] = value.clone();
        }
        self.provider(move |provider| provider.sign(&header.to_string(), &claims.to_string())).await
    }

    async fn is_good(&self, token: &str, now: UnixMillis) -> Result<(), String> {
        match self.oidc.verify_id_token(token, Client::Web, None, now).await {
            Ok(_) => Ok(()),
            Err(TokenError::Invalid(invalid)) => Err(invalid.code().to_owned()),
            Err(TokenError::Provider(_)) => Err("provider".to_owned()),
        }
    }

    async fn fetches(&self) -> u64 {
        self.provider(|provider| provider.count(JWKS)).await
    }
}

fn now() -> UnixMillis {
    SystemClock.now()
}

#[tokio::test]
async fn a_hundred_tokens_at_once_are_one_fetch_of_keys_and_none_afterwards() {
    let world = World::start().await;
    let token = world.token(json!({}), json!({})).await;
    let all = futures_util::future::join_all((0..100).map(|_| world.is_good(&token, now()))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(world.fetches().await, 1);
    world.is_good(&token, now().plus(Millis::from_minutes(9))).await.unwrap();
    assert_eq!(world.fetches().await, 1);
    world.is_good(&token, now().plus(Millis::from_minutes(11))).await.unwrap();
    assert_eq!(world.fetches().await, 2, "keys are looked at again, so that a withdrawn one does not count for ever");
}

#[tokio::test]
async fn a_new_key_is_found_at_once_and_a_withdrawn_one_stops_counting() {
    let world = World::start().await;
    let old = world.token(json!({}), json!({})).await;
    world.is_good(&old, now()).await.unwrap();
    world.provider(|provider| provider.rotate(true)).await;
    let new = world.token(json!({}), json!({})).await;
    let later = now().plus(Millis::from_secs(11));
    let all = futures_util::future::join_all((0..50).map(|_| world.is_good(&new, later))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(world.fetches().await, 2);
    world.is_good(&old, later).await.unwrap();
    world.provider(|provider| provider.rotate(false)).await;
    let later = later.plus(Millis::from_minutes(11));
    assert_eq!(world.is_good(&old, later).await, Err("unknown_key".to_owned()));
    assert_eq!(world.is_good(&new, later).await, Err("unknown_key".to_owned()));
}

#[tokio::test]
async fn keys_serve_while_the_provider_is_away_for_six_hours_and_not_longer() {
    let world = World::start().await;
    let token = world.token(json!({}), json!({})).await;
    world.is_good(&token, now()).await.unwrap();
    let unknown = world.token(json!({"kid": "never-seen"}), json!({})).await;
    world.provider(|provider| provider.behave(r#"{"down":true}"#)).await;
    let at = |hours: u64| now().plus(Millis::from_hours(hours));
    for hours in [1, 3, 5] {
        world.is_good(&token, at(hours)).await.unwrap();
        assert_eq!(world.is_good(&unknown, at(hours)).await, Err("unknown_key".to_owned()), "{hours} h");
    }
    for hours in [7, 10] {
        assert_eq!(world.is_good(&token, at(hours)).await, Err("provider".to_owned()), "{hours} h");
    }
    world.provider(|provider| provider.behave(r#"{"down":false}"#)).await;
    world.is_good(&token, at(11)).await.unwrap();
}

#[tokio::test]
async fn made_up_keys_cost_one_fetch_in_ten_seconds() {
    let world = World::start().await;
    let good = world.token(json!({}), json!({})).await;
    world.is_good(&good, now()).await.unwrap();
    let begin = now().plus(Millis::from_secs(20));
    for number in 0..30_u64 {
        let token = world.token(json!({"kid": format!("made-up-{number}")}), json!({})).await;
        let at = begin.plus(Millis::new(number * 1_000));
        assert_eq!(world.is_good(&token, at).await, Err("unknown_key".to_owned()));
        world.is_good(&good, at).await.unwrap();
    }
    assert_eq!(world.fetches().await, 1 + 3, "thirty seconds of made-up keys");
}

#[tokio::test]
async fn each_surface_refuses_the_other_surfaces_tokens_of_the_real_provider() {
    let world = World::start().await;
    for of in Client::ALL {
        let id = world.token(json!({}), json!({"aud": of.token()})).await;
        let access = json!({"aud": ["https://api.envforge.test", format!("{}userinfo", world.provider.issuer())], "azp": of.token()});
        let access = world.token(json!({"typ": "at+jwt"}), access).await;
        for on in Client::ALL {
            let id = world.oidc.verify_id_token(&id, on, None, now()).await;
            let access = world.oidc.verify_access_token(&access, on, now()).await;
            if of == on {
                assert!(id.is_ok() && access.is_ok(), "{of:?}");
            } else {
                assert!(matches!(id, Err(TokenError::Invalid(InvalidToken::Client))), "{of:?} on {on:?}");
                assert!(matches!(access, Err(TokenError::Invalid(InvalidToken::Client))), "{of:?} on {on:?}");
            }
        }
    }
}

#[tokio::test]
async fn an_answer_without_end_and_one_that_never_comes_are_no_keys() {
    for mad in [r#"{"huge":true}"#, r#"{"delay_ms":60000,"delay_path":"/.well-known/jwks"}"#, r#"{"keys_extra":100}"#] {
        let world = World::start().await;
        let token = world.token(json!({}), json!({})).await;
        world.provider(|provider| provider.behave(mad)).await;
        let begun = std::time::Instant::now();
        assert_eq!(world.is_good(&token, now()).await, Err("provider".to_owned()), "{mad}");
        assert!(begun.elapsed() < std::time::Duration::from_secs(12), "{mad}");
        world.provider(|provider| provider.behave(r#"{"huge":false,"delay_ms":0,"keys_extra":0}"#)).await;
        world.is_good(&token, now().plus(Millis::from_secs(11))).await.unwrap();
    }
}
