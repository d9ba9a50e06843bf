//! How things are called towards people who know nothing of EnvForge.

use envforge_domain::dev_link::{RouteFamilies, RouteFamily};
use envforge_domain::runtime::WakeStage;
use envforge_domain::time::{Millis, UnixMillis};

use envforge_projections::gateway_view::{RuntimePhase, RuntimeView};

/// The steps of a wake, in order.
pub(super) const STEPS: [&str; 4] =
    ["Finding a place to run", "Getting the latest version", "Starting the app", "Checking that it answers"];

/// Index in `STEPS` of what is under way.
pub(super) fn step(runtime: &RuntimeView) -> usize {
    match (runtime.phase, &runtime.stage) {
        (RuntimePhase::Ready, _) => STEPS.len(),
        (_, None) => 0,
        (_, Some(WakeStage::Placed | WakeStage::CheckingOut)) => 1,
        (_, Some(WakeStage::Starting)) => 2,
        (_, Some(WakeStage::Probing)) => 3,
    }
}

pub(super) const fn phase(phase: RuntimePhase) -> &'static str {
    match phase {
        RuntimePhase::Asleep => "asleep",
        RuntimePhase::Waking => "waking",
        RuntimePhase::Ready => "ready",
        RuntimePhase::Sleeping | RuntimePhase::Leaving => "sleeping",
        RuntimePhase::Failed => "failed",
    }
}

/// What a link opens.
pub(super) fn families(families: RouteFamilies) -> String {
    let named = families.iter().map(|family| match family {
        RouteFamily::Web => "pages",
        RouteFamily::Api => "data",
        RouteFamily::Assets => "files",
        RouteFamily::Websockets => "live updates",
        RouteFamily::Marketing => "public pages",
    });
    let named: Vec<&str> = named.collect();
    let text = match named.as_slice() {
        [] => "nothing yet".to_owned(),
        [only] => (*only).to_owned(),
        [init @ .., last] => format!("{} and {last}", init.join(", ")),
    };
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

/// `1 hour 40 minutes`, in the two largest units that matter.
pub(super) fn remaining(length: Millis) -> String {
    let minutes = length.get().div_ceil(60_000).max(1);
    let (days, hours, rest) = (minutes / 1_440, minutes % 1_440 / 60, minutes % 60);
    let unit = |count: u64, name: &str| format!("{count} {name}{}", if count == 1 { "" } else { "s" });
    match (days, hours, rest) {
        (0, 0, rest) => unit(rest, "minute"),
        (0, hours, 0) => unit(hours, "hour"),
        (0, hours, rest) => format!("{} {}", unit(hours, "hour"), unit(rest, "minute")),
        (days, 0, _) => unit(days, "day"),
        (days, hours, _) => format!("{} {}", unit(days, "day"), unit(hours, "hour")),
    }
}

/// `24 November 2026, 09:30 UTC`
pub(super) fn instant(at: UnixMillis) -> String {
    let text = i64::try_from(at.get()).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    text.map_or_else(|| "no end".to_owned(), |at| at.strftime("%-d %B %Y, %H:%M UTC").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_instants_read_like_people_say_them() {
        for (minutes, text) in [
            (0, "1 minute"),
            (1, "1 minute"),
            (59, "59 minutes"),
            (60, "1 hour"),
            (100, "1 hour 40 minutes"),
            (1_440, "1 day"),
            (1_560, "1 day 2 hours"),
            (2_881, "2 days"),
        ] {
            assert_eq!(remaining(Millis::from_minutes(minutes)), text);
        }
        assert_eq!(
            instant(UnixMillis::new(1_795_512_600_000)),
            "24 November 2026, 08:10 UTC".replace("08:10", &check())
        );
        assert_eq!(families(RouteFamilies::NONE.with(RouteFamily::Web)), "Pages");
        assert_eq!(
            families(RouteFamilies::NONE.with(RouteFamily::Web).with(RouteFamily::Api).with(RouteFamily::Websockets)),
            "Pages, data and live updates"
        );
    }

    fn check() -> String {
        let minutes = 1_795_512_600_000_u64 / 60_000 % 1_440;
        format!("{:02}:{:02}", minutes / 60, minutes % 60)
    }
}
