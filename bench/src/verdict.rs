//! What came out: series of rounds with their medians, and goals held against them.
//!
//! A missed goal is said in a line of its own; it is no failure of the benchmark, whose exit code stays 0.

use std::fmt;

/// What a figure must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn holds(self, found: f64) -> bool {
        match self {
            Self::AtLeast(bound) => found >= bound,
            Self::AtMost(bound) => found <= bound,
        }
    }
}

/// One figure per round.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    name: String,
    unit: &'static str,
    rounds: Vec<f64>,
}

impl Series {
    pub(crate) fn new(name: impl Into<String>, unit: &'static str) -> Self {
        Self { name: name.into(), unit, rounds: Vec::new() }
    }

    pub(crate) fn push(&mut self, value: f64) {
        self.rounds.push(value);
    }

    /// The median; 0 before the first round.
    pub(crate) fn median(&self) -> f64 {
        median(&self.rounds)
    }

    /// The largest; 0 before the first round.
    pub(crate) fn worst(&self) -> f64 {
        self.rounds.iter().copied().fold(0.0, f64::max)
    }
}

impl fmt::Display for Series {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds: Vec<String> = self.rounds.iter().map(|value| amount(*value)).collect();
        let median = amount(self.median());
        write!(formatter, "  {:<44} {median:>10} {:<14} rounds: {}", self.name, self.unit, rounds.join("  "))
    }
}

/// The middle one, or the mean of the two in the middle.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

/// With as many digits as a reader wants.
fn amount(value: f64) -> String {
    match value.abs() {
        large if large >= 1_000.0 => {
            let digits = format!("{value:.0}");
            let (sign, digits) = digits.strip_prefix('-').map_or(("", &*digits), |digits| ("-", digits));
            let mut grouped = String::from(sign);
            for (index, digit) in digits.chars().enumerate() {
                if index > 0 && (digits.len() - index) % 3 == 0 {
                    grouped.push(',');
                }
                grouped.push(digit);
            }
            grouped
        }
        middle if middle >= 100.0 => format!("{value:.0}"),
        small if small >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Prints what is found as it is found, and keeps count of goals.
#[derive(Debug, Default)]
pub(crate) struct Verdicts {
    met: usize,
    missed: Vec<String>,
}

impl Verdicts {
    /// A figure that has a goal.
    pub(crate) fn judge(&mut self, what: &str, found: f64, unit: &str, goal: Goal) {
        let (word, bound) = match goal {
            Goal::AtLeast(bound) => (">=", bound),
            Goal::AtMost(bound) => ("<=", bound),
        };
        let unit = if unit == "x" { "x".to_owned() } else { format!(" {unit}") };
        let line = format!("{what}: {}{unit}, goal {word} {}{unit}", amount(found), amount(bound));
        if goal.holds(found) {
            self.met += 1;
            println!("  => {line}: ok");
        } else {
            println!("  => {line}: MISSED");
            self.missed.push(line);
        }
    }

    /// The last word of a benchmark.
    pub(crate) fn conclude(&self) {
        println!();
        println!("goals: {} met, {} missed", self.met, self.missed.len());
        for line in &self.missed {
            println!("MISSED {line}");
        }
    }
}

/// Latencies of one round, to be sorted once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies(Vec<std::time::Duration>);

impl Latencies {
    pub(crate) fn new(mut all: Vec<std::time::Duration>) -> Self {
        all.sort_unstable();
        Self(all)
    }

    /// In milliseconds; 0 where there is none.
    pub(crate) fn percentile_ms(&self, percent: f64) -> f64 {
        let Some(last) = self.0.len().checked_sub(1) else { return 0.0 };
        // The nearest rank, rounded up: a p99 of 100 values is the 99th, never better.
        let rank = (percent / 100.0 * self.0.len() as f64).ceil() as usize;
        self.0[rank.clamp(1, last + 1) - 1].as_secs_f64() * 1_000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_median_is_the_middle_of_the_rounds() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
    }

    #[test]
    fn a_percentile_is_a_value_that_was_seen_and_never_flatters() {
        let latencies = Latencies::new((1..=100).rev().map(Duration::from_millis).collect());
        assert_eq!(latencies.percentile_ms(50.0), 50.0);
        assert_eq!(latencies.percentile_ms(99.0), 99.0);
        assert_eq!(Latencies::new(vec![Duration::from_millis(7)]).percentile_ms(99.0), 7.0);
        assert_eq!(Latencies::default().percentile_ms(99.0), 0.0);
    }

    #[test]
    fn a_goal_is_met_at_its_bound_and_missed_beyond() {
        let mut verdicts = Verdicts::default();
        verdicts.judge("ratio", 0.7, "x", Goal::AtLeast(0.7));
        verdicts.judge("ratio", 1.16, "x", Goal::AtMost(1.15));
        assert_eq!(verdicts.met, 1);
        assert_eq!(verdicts.missed, ["ratio: 1.16x, goal <= 1.15x"]);
    }

    #[test]
    fn amounts_are_grouped_and_short() {
        let shown = [1_234_567.0, -12_345.4, 999.6, 12.34, 0.756].map(amount);
        assert_eq!(shown, ["1,234,567", "-12,345", "1000", "12.3", "0.76"]);
    }
}
