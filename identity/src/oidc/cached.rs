//! Something of the provider's that is kept for a while: one fetch for however many ask, not too often, and an old value for a bounded time
//! while the provider is away.
//!
//! Time is what callers are handed. Not here: what is kept and how it is fetched.

use std::sync::Arc;

use envforge_domain::time::{Millis, UnixMillis};
use parking_lot::Mutex;

use super::provider::ProviderError;

/// How long a value counts, and how often another one is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// For metrics and logs.
    pub(super) what: &'static str,
    /// A younger value is not fetched again, unless it lacks what is needed.
    pub(super) fresh_for: Millis,
    /// An older value is refused, also when the provider does not answer.
    pub(super) stale_max: Millis,
    /// Between two attempts, whatever they are for: neither an outage nor a flood of made-up key ids becomes a flood of fetches.
    pub(super) pause: Millis,
}

struct State<T> {
    value: Option<(Arc<T>, UnixMillis)>,
    attempted_at: Option<UnixMillis>,
    attempts: u64,
    fetching: bool,
    failed: Option<String>,
}

/// One value of the provider's.
pub(super) struct Cached<T> {
    rules: Rules,
    state: Arc<Mutex<State<T>>>,
    /// Whoever holds it fetches.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl<T: Send + Sync + 'static> Cached<T> {
    pub(super) fn new(rules: Rules) -> Self {
        let state = State { value: None, attempted_at: None, attempts: 0, fetching: false, failed: None };
        Self { rules, state: Arc::new(Mutex::new(state)), turn: Arc::default() }
    }

    /// The value; fetched where there is none, where it is old, or where it is not `enough`. The answer may still not be enough.
    pub(super) async fn get<F>(
        &self,
        now: UnixMillis,
        enough: impl Fn(&T) -> bool,
        fetch: impl FnOnce() -> F,
    ) -> Result<Arc<T>, ProviderError>
    where
        F: Future<Output = Result<T, ProviderError>> + Send + 'static,
    {
        let seen = {
            let state = self.state.lock();
            if let Some((value, at)) = &state.value
                && now.since(*at) < self.rules.fresh_for
                && enough(value)
            {
                return Ok(Arc::clone(value));
            }
            // What is being fetched right now may be what is needed.
            if self.rests(&state, now) && !state.fetching {
                return self.settle(&state, now);
            }
            state.attempts
        };
        let turn = Arc::clone(&self.turn).lock_owned().await;
        {
            let mut state = self.state.lock();
            // Somebody else has asked while we waited, for all of us.
            if state.attempts != seen || self.rests(&state, now) {
                return self.settle(&state, now);
            }
            state.attempted_at = Some(now);
            state.fetching = true;
        }
        metrics::counter!("envforge_provider_fetches_total", "what" => self.rules.what).increment(1);
        let fetching = fetch();
        let (state, what) = (Arc::clone(&self.state), self.rules.what);
        // A task of its own: whoever gives up waiting does not take the others' answer along.
        let fetched = tokio::spawn(async move {
            let _turn = turn;
            let outcome = fetching.await;
            let mut state = state.lock();
            state.attempts += 1;
            state.fetching = false;
            match outcome {
                Ok(value) => {
                    state.value = Some((Arc::new(value), now));
                    state.failed = None;
                }
                Err(error) => {
                    tracing::warn!(what, %error, "the identity provider did not give what was asked for");
                    state.failed = Some(error.to_string());
                }
            }
        });
        if fetched.await.is_err() {
            return Err(ProviderError::Malformed(format!("the provider's {what} could not be read")));
        }
        self.settle(&self.state.lock(), now)
    }

    fn rests(&self, state: &State<T>, now: UnixMillis) -> bool {
        state.attempted_at.is_some_and(|at| now.since(at) < self.rules.pause)
    }

    fn settle(&self, state: &State<T>, now: UnixMillis) -> Result<Arc<T>, ProviderError> {
        match &state.value {
            Some((value, at)) if now.since(*at) < self.rules.stale_max => Ok(Arc::clone(value)),
            Some(_) | None => Err(ProviderError::Unreachable(format!(
                "no usable {}: {}",
                self.rules.what,
                state.failed.as_deref().unwrap_or("it was never fetched")
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const RULES: Rules = Rules {
        what: "test",
        fresh_for: Millis::from_minutes(10),
        stale_max: Millis::from_hours(6),
        pause: Millis::from_secs(10),
    };
    const NOW: UnixMillis = UnixMillis::new(1_795_000_000_000);

    struct Source {
        cached: Cached<u32>,
        asked: Arc<AtomicU32>,
    }

    impl Source {
        fn new() -> Self {
            Self { cached: Cached::new(RULES), asked: Arc::default() }
        }

        async fn get(&self, now: UnixMillis, least: u32, works: bool) -> Result<u32, ProviderError> {
            let asked = Arc::clone(&self.asked);
            let fetch = || async move {
                tokio::task::yield_now().await;
                let count = asked.fetch_add(1, Ordering::SeqCst) + 1;
                if works { Ok(count) } else { Err(ProviderError::Unreachable("away".into())) }
            };
            self.cached.get(now, |value| *value >= least, fetch).await.map(|value| *value)
        }

        fn asked(&self) -> u32 {
            self.asked.load(Ordering::SeqCst)
        }
    }

    #[tokio::test]
    async fn however_many_ask_at_once_one_fetch_answers_all() {
        let source = Source::new();
        let all = futures_util::future::join_all((0..100).map(|_| source.get(NOW, 0, true))).await;
        assert!(all.into_iter().all(|value| value.unwrap() == 1));
        assert_eq!(source.asked(), 1);
    }

    #[tokio::test]
    async fn what_is_lacking_is_fetched_again_but_not_more_often_than_the_pause() {
        let source = Source::new();
        for step in 0..1_000_u64 {
            source.get(NOW.plus(Millis::new(step * 20)), u32::MAX, true).await.unwrap();
        }
        assert_eq!(source.asked(), 2, "twenty seconds of questions for what nobody has");
    }

    #[tokio::test]
    async fn an_old_value_serves_while_the_provider_is_away_and_is_refused_after_that() {
        let source = Source::new();
        source.get(NOW, 0, true).await.unwrap();
        let at = |hours: u64| NOW.plus(Millis::from_hours(hours));
        assert_eq!(source.get(at(1), 0, false).await.unwrap(), 1);
        assert_eq!(source.get(at(5), 0, false).await.unwrap(), 1);
        assert!(source.get(at(6), 0, false).await.is_err());
        assert_eq!(source.get(at(7), 0, true).await.unwrap(), 5);
    }

    #[tokio::test]
    async fn a_provider_that_never_answered_is_asked_once_in_a_pause() {
        let source = Source::new();
        for _ in 0..50 {
            assert!(source.get(NOW, 0, false).await.is_err());
        }
        assert_eq!(source.asked(), 1);
        assert!(source.get(NOW.plus(RULES.pause), 0, false).await.is_err());
        assert_eq!(source.asked(), 2);
    }

    #[tokio::test]
    async fn somebody_who_gives_up_waiting_does_not_take_the_answer_along() {
        let source = Source::new();
        {
            let first = source.get(NOW, 0, true);
            let mut first = std::pin::pin!(first);
            assert!(futures_util::poll!(&mut first).is_pending());
        }
        assert_eq!(source.get(NOW, 0, true).await.unwrap(), 1);
        assert_eq!(source.asked(), 1);
    }
}
