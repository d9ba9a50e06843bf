//! How often and how soon a crashed service is started again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rand::RngExt;

use crate::config::Config;

/// The restarts of one service that still count.
pub(crate) struct RestartBudget {
    restarts_max: u32,
    window: Duration,
    delay_min: Duration,
    delay_max: Duration,
    spent: VecDeque<Instant>,
}

impl RestartBudget {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            restarts_max: config.restarts_max,
            window: config.restart_window,
            delay_min: config.restart_delay_min,
            delay_max: config.restart_delay_max,
            spent: VecDeque::new(),
        }
    }

    /// Spends one restart. The wait before it, or `None` if the budget is used up.
    pub(crate) fn spend(&mut self, now: Instant) -> Option<Duration> {
        while self.spent.front().is_some_and(|earlier| now.duration_since(*earlier) >= self.window) {
            self.spent.pop_front();
        }
        let spent = u32::try_from(self.spent.len()).unwrap_or(u32::MAX);
        if spent >= self.restarts_max {
            return None;
        }
        self.spent.push_back(now);
        let full = self.delay_min.saturating_mul(1u32.checked_shl(spent).unwrap_or(u32::MAX)).min(self.delay_max);
        // Jitter downwards, so that services that died together do not come back together.
        Some(full.mul_f64(rand::rng().random_range(0.5..=1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> RestartBudget {
        RestartBudget {
            restarts_max: 5,
            window: Duration::from_secs(600),
            delay_min: Duration::from_millis(100),
            delay_max: Duration::from_secs(1),
            spent: VecDeque::new(),
        }
    }

    #[test]
    fn the_wait_doubles_up_to_its_bound_and_then_the_budget_is_spent() {
        let (mut budget, now) = (budget(), Instant::now());
        for full in [100, 200, 400, 800, 1_000] {
            let wait = budget.spend(now).map(|wait| wait.as_millis());
            assert!(wait.is_some_and(|wait| wait >= full / 2 && wait <= full), "{wait:?} of {full}");
        }
        assert_eq!(budget.spend(now), None);
    }

    #[test]
    fn old_crashes_are_forgiven() {
        let (mut budget, now) = (budget(), Instant::now());
        for _ in 0..5 {
            assert!(budget.spend(now).is_some());
        }
        assert_eq!(budget.spend(now + Duration::from_secs(599)), None);
        assert!(budget.spend(now + Duration::from_secs(600)).is_some_and(|wait| wait <= Duration::from_millis(100)));
    }
}
