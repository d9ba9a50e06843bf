//! Waiting for a condition with a deadline: the only place where tests sleep.
//!
//! It judges nothing: a condition that never comes true is a panic that names what was waited for.

use std::time::{Duration, Instant};

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

fn next_pause(pause: Duration) -> Duration {
    (pause * 2).min(LONGEST_PAUSE)
}

/// Waits until `condition` holds.
///
/// # Panics
/// After `deadline`, naming `what` was waited for.
#[track_caller]
pub fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, deadline, || condition().then_some(()));
}

/// Waits until `look` finds something, and returns it.
///
/// # Panics
/// After `deadline`, naming `what` was waited for.
#[track_caller]
pub fn wait_for<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    let in_time = comes_true(deadline, || {
        found = look();
        found.is_some()
    });
    match found {
        Some(found) if in_time => found,
        _ => panic!("waited {:.1} s in vain for {what}", deadline.as_secs_f64()),
    }
}

/// Whether `condition` comes true in that time; for drops, which must not panic.
pub(crate) fn comes_true(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    let mut pause = FIRST_PAUSE;
    while !condition() {
        if begun.elapsed() >= deadline {
            return false;
        }
        std::thread::sleep(pause);
        pause = next_pause(pause);
    }
    true
}

/// Waits, without blocking the runtime, until `look` finds something, and returns it. Also ends a `look` that itself hangs.
///
/// # Panics
/// After `deadline`, naming `what` was waited for.
#[cfg(feature = "tokio")]
pub async fn eventually<T>(what: &str, deadline: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let search = async {
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(pause).await;
            pause = next_pause(pause);
        }
    };
    match tokio::time::timeout(deadline, search).await {
        Ok(found) => found,
        Err(_) => panic!("waited {:.1} s in vain for {what}", deadline.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_comes_true_ends_the_wait() {
        let mut asked = 0;
        wait_until("the third question", Duration::from_secs(5), || {
            asked += 1;
            asked == 3
        });
        assert_eq!(asked, 3);
    }

    #[test]
    #[should_panic(expected = "in vain for the moon")]
    fn a_condition_that_stays_false_names_what_was_waited_for() {
        wait_until("the moon", Duration::from_millis(5), || false);
    }

    #[tokio::test]
    #[should_panic(expected = "in vain for an answer")]
    async fn a_question_that_hangs_ends_at_the_deadline() {
        eventually("an answer", Duration::from_millis(5), async || std::future::pending::<Option<()>>().await).await;
    }
}
