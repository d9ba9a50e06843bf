//! Ten thousand requests with what was just revoked, on every surface, against the product's real processes: none is let in.
//!
//! In each round somebody's right is taken in one of the ways that there are, over the API, a page or the command line. As
//! soon as that was acknowledged, whatever stood on it is tried, from connections that were open before; what was open
//! already must end. Everything was let in before the revocation, and whatever stands on other grounds is let in after it.
//! `ENVFORGE_TEST_SEED` repeats a run's choices.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and choose a seed")]

mod kinds;
mod person;
mod probe;
mod provider;
mod receipts;
mod site;
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::task::JoinSet;

use kinds::{Kind, Revoked};
use person::{Person, Taken, stands};
use probe::{Outcome, Probe, Probes};
use site::{DEADLINE, Site};
use wire::Heard;

/// People whose rights are taken, in turn; every second one holds them by way of a team.
const PEOPLE: usize = 4;
const WORKERS: usize = 8;
/// What is open must end within this time; streams look at rights once a second.
const ENDS_WITHIN: Duration = Duration::from_secs(3);
/// Runs of the command line in one round: a program is slow to start.
const RUNS: usize = 3;

#[derive(Default)]
struct Count {
    asked: usize,
    let_in: usize,
    /// Over a connection that was open before.
    kept: usize,
}

/// What was seen in all rounds.
#[derive(Default)]
struct Tally {
    by_surface: BTreeMap<&'static str, Count>,
    by_kind: BTreeMap<String, Count>,
    /// Of those whose rights were not touched.
    others: usize,
    sockets_closed: usize,
    streams_ended: usize,
    wrong: Vec<String>,
}

impl Tally {
    fn refused(&mut self, kind: Kind, probe: &Probe, outcome: &Outcome, kept: bool) {
        for count in
            [self.by_surface.entry(probe.surface).or_default(), self.by_kind.entry(format!("{kind:?}")).or_default()]
        {
            count.asked += 1;
            count.let_in += usize::from(*outcome == Outcome::LetIn);
            count.kept += usize::from(kept);
        }
        if !matches!(outcome, Outcome::Refused(_)) {
            self.wrong.push(format!("{kind:?}: {} {}: {outcome:?}", probe.surface, probe.what));
        }
    }

    fn asked(&self) -> usize {
        self.by_surface.values().map(|count| count.asked).sum()
    }

    fn show(&self) {
        let lines = |counts: Vec<(String, &Count)>| {
            for (name, Count { asked, let_in, kept }) in counts {
                println!("  {name:<28} {asked:>6} asked, {kept:>6} over open connections, {let_in} let in");
            }
        };
        println!("{} requests after revocations:", self.asked());
        lines(self.by_surface.iter().map(|(name, count)| ((*name).to_owned(), count)).collect());
        println!("by what was revoked:");
        lines(self.by_kind.iter().map(|(name, count)| (name.clone(), count)).collect());
        println!(
            "{} WebSockets closed, {} event streams ended, {} requests of others let in",
            self.sockets_closed, self.streams_ended, self.others
        );
    }
}

/// A revocation and what comes after it.
struct Round<'a> {
    site: &'a Arc<Site>,
    kind: Kind,
    taken: Taken,
    position: Option<u64>,
}

/// Everybody is let in where they should be, over that many connections.
async fn control(site: &Arc<Site>, probes: &Probes, connections_max: usize) {
    let mut asking = JoinSet::new();
    for probe in probes.iter().filter(|probe| !probe.once) {
        let (site, probe) = (Arc::clone(site), Arc::clone(probe));
        asking.spawn(async move {
            let refused =
                probe.open(&site, connections_max).await.into_iter().find(|outcome| *outcome != Outcome::LetIn);
            refused.map(|outcome| format!("{} {}: {outcome:?}", probe.surface, probe.what))
        });
    }
    let mut wrong = Vec::new();
    while let Some(asked) = asking.join_next().await {
        wrong.extend(asked.unwrap());
    }
    assert!(wrong.is_empty(), "not let in before the revocation:\n{}", wrong.join("\n"));
}

/// Which probes are asked, in which order: `count` of what was revoked, and some of what was not. Programs are slow to
/// start, and little of it.
fn choose(probes: &Probes, taken: &Taken, count: usize, rng: &mut StdRng) -> Vec<(Arc<Probe>, bool)> {
    let mut chosen: Vec<_> = probes
        .iter()
        .filter(|probe| probe.once && !stands(&probe.stands_on, taken))
        .map(|probe| (Arc::clone(probe), true))
        .collect();
    for (dead, wanted) in [(true, count), (false, count / 6)] {
        let of_these = |probe: &&Arc<Probe>| !probe.once && stands(&probe.stands_on, taken) != dead;
        let (programs, others): (Vec<_>, Vec<_>) =
            probes.iter().filter(of_these).cloned().partition(|probe| probe.is_slow());
        let mut draw = |from: &[Arc<Probe>], wanted: usize| {
            for _ in 0..if from.is_empty() { 0 } else { wanted } {
                chosen.push((Arc::clone(&from[rng.random_range(0..from.len())]), dead));
            }
        };
        draw(&programs, if dead { RUNS } else { 0 });
        draw(&others, wanted);
    }
    chosen.shuffle(rng);
    chosen
}

impl Round<'_> {
    /// Asks, many at once, beginning now.
    async fn ask(&self, chosen: Vec<(Arc<Probe>, bool)>, seed: u64, tally: &mut Tally) {
        let (chosen, next) = (Arc::new(chosen), Arc::new(AtomicUsize::new(0)));
        let mut workers = JoinSet::new();
        for worker in 0..WORKERS {
            let (site, chosen, next) = (Arc::clone(self.site), Arc::clone(&chosen), Arc::clone(&next));
            let mut rng = StdRng::seed_from_u64(seed.wrapping_add(worker as u64));
            workers.spawn(async move {
                let mut seen = Vec::new();
                while let Some((probe, dead)) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (outcome, kept) = probe.ask(&site, &mut rng).await;
                    seen.push((Arc::clone(probe), *dead, outcome, kept));
                }
                seen
            });
        }
        while let Some(seen) = workers.join_next().await {
            for (probe, dead, outcome, kept) in seen.unwrap() {
                if dead {
                    tally.refused(self.kind, &probe, &outcome, kept);
                } else {
                    tally.others += 1;
                    if outcome != Outcome::LetIn {
                        let told = format!(
                            "{:?} stood in the way of {} {}: {outcome:?}",
                            self.kind, probe.surface, probe.what
                        );
                        tally.wrong.push(told);
                    }
                }
            }
        }
    }

    /// What was open on what was revoked ends, and everything else goes on.
    async fn look_at_what_was_open(&self, people: [&mut Person; 2], tally: &mut Tally) {
        let (mut sockets, mut streams) = (Vec::new(), Vec::new());
        for person in people {
            sockets.extend(person.sockets.iter_mut());
            streams.extend(person.streams.iter_mut());
        }
        let (site, taken) = (self.site, &self.taken);
        let said = join_all(sockets.iter_mut().map(async |held| held.open.say("after", ENDS_WITHIN).await));
        // Something that whoever follows still has to hear of, and nobody else.
        let written = async {
            static TEAMS: AtomicUsize = AtomicUsize::new(0);
            let more = json!({ "slug": format!("after-{}", TEAMS.fetch_add(1, Ordering::Relaxed)) });
            let made = site.as_owner("POST", "/v1/orgs/acme/teams", Some(&more)).await;
            made.header("envforge-position").unwrap().parse().unwrap()
        };
        let (said, written): (Vec<Heard>, u64) = tokio::join!(said, written);
        for (held, heard) in sockets.iter().zip(said) {
            let expected = if stands(&held.stands_on, taken) { Heard::SaidBack } else { Heard::Closed };
            tally.sockets_closed += usize::from(heard == Heard::Closed);
            if heard != expected {
                tally.wrong.push(format!("{:?}: {}: {heard:?}", self.kind, held.what));
            }
        }
        for held in &mut streams {
            let wrong = if stands(&held.stands_on, taken) {
                (!held.open.comes_to(written, ENDS_WITHIN).await).then_some("does not go on")
            } else if !held.open.ends(ENDS_WITHIN).await {
                Some("does not end")
            } else {
                tally.streams_ended += 1;
                // Where the answer names no position, whatever was written by others meanwhile is as good as one.
                let last = self.position.unwrap_or(written - 1);
                (held.open.newest() > last).then_some("delivered what came after the revocation")
            };
            tally.wrong.extend(wrong.map(|wrong| format!("{:?}: {} {wrong}", self.kind, held.what)));
        }
    }
}

async fn revoke_at_random(site: Site, requests: usize, times_each_kind: usize) {
    let begun = Instant::now();
    let seed = std::env::var("ENVFORGE_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    // Shown where the test fails.
    println!("ENVFORGE_TEST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let site = Arc::new(site);
    let mut kinds: Vec<_> = Kind::ALL.iter().copied().cycle().take(Kind::ALL.len() * times_each_kind).collect();
    kinds.shuffle(&mut rng);
    // After some, only the command line has anything to ask, which is slow: the rest is made up for by those behind them.
    if let Some(other) = kinds.iter().rposition(|kind| !kind.may_end_nothing_but_programs()) {
        let last = kinds.len() - 1;
        kinds.swap(other, last);
    }
    let home = site.workspace().await;
    let mut bystander = Person::hire(&site, 0, false, &home).await;
    let mut side = site.workspace().await;
    let mut people = Vec::new();
    for number in 1..=PEOPLE {
        people.push(Person::hire(&site, number, number % 2 == 0, &side).await);
    }
    let mut tally = Tally::default();
    let rounds = kinds.len();
    for (number, kind) in kinds.into_iter().enumerate() {
        let able: Vec<_> = (0..PEOPLE).filter(|person| kind.can_happen_to(&people[*person])).collect();
        let victim = able[rng.random_range(0..able.len())];
        people[victim].refit(&site).await;
        bystander.refit(&site).await;
        let mut probes = people[victim].probes(&site).await;
        // One program of each is enough to be slow.
        let run = rng.random_range(0..3);
        let mut programs = 0;
        probes.retain(|probe| {
            !probe.is_slow() || {
                programs += 1;
                programs - 1 == run
            }
        });
        let mut of_others = bystander.probes(&site).await;
        of_others.retain(|probe| !probe.is_slow());
        tokio::join!(control(&site, &probes, usize::MAX), control(&site, &of_others, 1));
        probes.append(&mut of_others);

        let count = (requests - tally.asked().min(requests)).div_ceil(rounds - number);
        let Revoked { taken, position } = kind.revoke(&site, &mut people[victim], &mut rng).await;
        let round = Round { site: &site, kind, taken: taken.into_iter().collect(), position };
        let chosen = choose(&probes, &round.taken, count, &mut rng);
        let asking_seed = rng.random();
        let mut of_open = Tally::default();
        tokio::join!(
            round.ask(chosen, asking_seed, &mut tally),
            round.look_at_what_was_open([&mut people[victim], &mut bystander], &mut of_open)
        );
        tally.sockets_closed += of_open.sockets_closed;
        tally.streams_ended += of_open.streams_ended;
        tally.wrong.append(&mut of_open.wrong);

        kind.undo(&site, &mut people[victim]).await;
        for person in people.iter_mut().chain([&mut bystander]) {
            person.lose(&round.taken);
        }
        if kind == Kind::WorkspaceArchived {
            side = site.workspace().await;
            for person in &mut people {
                person.workspace = side.clone();
            }
        }
        assert!(begun.elapsed() < 4 * DEADLINE, "round {number} of {rounds}");
    }
    tally.show();
    println!("{:.1} s", begun.elapsed().as_secs_f64());
    assert!(tally.wrong.is_empty(), "with the seed {seed}:\n{}\n{}", tally.wrong.join("\n"), site.complaints());
    assert!(tally.asked() >= requests, "{} requests", tally.asked());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_let_in_after_a_revocation_was_acknowledged() {
    revoke_at_random(Site::dev().await, 10_000, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_let_in_by_any_process_over_nats_and_postgres() {
    revoke_at_random(Site::cluster(2).await, 2_000, 1).await;
}
