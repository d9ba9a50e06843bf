//! Deadlines, on runtimes whose host is this test: no process, and leases as long as a test wants them.

use envforge_commands::root_windows::NewRootWindow;
use envforge_commands::{Context, hosts, links, organizations, root_windows, runtimes};
use envforge_domain::access::{Action, ActorFacts, Facts, Request, Resource, authorize};
use envforge_domain::commit::{Actor, Component, Position, Surface};
use envforge_domain::dev_link::DevLinkEvent;
use envforge_domain::event::Event;
use envforge_domain::host::HostCommand;
use envforge_domain::ids::{HostId, LinkId};
use envforge_domain::limits::ROOT_LOST_AFTER;
use envforge_domain::organization::{OrganizationCommand, OrganizationPolicy};
use envforge_domain::root_window::{RootAccess, RootMode, RootOutcome, RootPolicy, RootWindowEvent};
use envforge_domain::runtime::{
    ActivitySource, Epoch, PostponeCause, Runtime, RuntimeCommand, RuntimeEvent, SleepCause,
};
use envforge_domain::secret::TokenDigest;
use envforge_domain::time::Millis;
use envforge_testkit::eventually;
use uuid::Uuid;

use crate::agents::register;
use crate::site::*;

const LONG: Millis = Millis::from_hours(10);

impl Site {
    /// The workspace's runtime is ready on a host that is not there; its lease holds that long.
    async fn ready_by_hand(&self, thing: Thing, lease: Millis) {
        let (epoch, host) = (Epoch(1), HostId::from_uuid(Uuid::from_u128(9)));
        self.wake_of(thing).await;
        self.report(thing, &RuntimeCommand::ChooseHost { epoch, host }).await.unwrap();
        let ready = RuntimeCommand::ReportReady {
            epoch,
            commit: "c0ffee".to_owned(),
            host,
            services: Vec::new(),
            endpoints: Vec::new(),
            lease_until: self.now().plus(lease),
        };
        self.report(thing, &ready).await.unwrap();
    }

    /// A host has taken a command of a root window, which is open for half an hour.
    async fn runs_as_root(&self) {
        let organization = Resource::Organization(acme());
        let permit = permit_of(&self.log, acme(), Action::OrganizationChangePolicy, organization, self.now()).await;
        let policy = OrganizationPolicy { root: RootPolicy::BreakGlass, ..OrganizationPolicy::default() };
        let (by, now) = (permit.actor(), self.now());
        let command = OrganizationCommand::ChangePolicy { by, policy, provider: None, now };
        organizations::change(&self.commands, &permit, &Context::new(now), &command).await.unwrap();
        let permit = self.permit(self.workspace, Action::RootBreakGlass).await;
        let (workspace, project) = (self.workspace.id, self.workspace.project);
        let (mode, access, reason) = (RootMode::BreakGlass, RootAccess::Command, "disk full".to_owned());
        let length = Some(Millis::from_minutes(30));
        let new = NewRootWindow { workspace, mode, access, reason, length, pending: 0 };
        let (window, _) = root_windows::request(&self.commands, &permit, &Context::new(now), new).await.unwrap();
        let resource = Resource::RootWindow { org: acme(), project, workspace, window };
        let permit = permit_of(&self.log, acme(), Action::RootRun, resource, now).await;
        let words = vec!["df".to_owned()];
        root_windows::run(&self.commands, &permit, &Context::new(now), window, words).await.unwrap();
        let facts = Facts { position: Position::START, actor: ActorFacts::System };
        let (actor, surface) = (Actor::System(Component::RuntimeReactor), Surface::Agent);
        let permit = authorize(&facts, &Request { actor, action: Action::RootReport, resource, surface, now }).unwrap();
        root_windows::report_started(&self.commands, &permit, &Context::new(now), window).await.unwrap();
    }

    async fn of_root(&self, wanted: impl Fn(&RootWindowEvent) -> bool) -> Option<RootWindowEvent> {
        self.history().await.into_iter().find_map(|event| match event {
            Event::RootWindow(event) if wanted(&event) => Some(event),
            _ => None,
        })
    }

    async fn used(&self, open_streams: u32) {
        let source = ActivitySource::Link(LinkId::from_uuid(Uuid::from_u128(7)));
        let used = RuntimeCommand::RecordActivity { epoch: Epoch(1), at: self.now(), open_streams, source };
        self.report(self.workspace, &used).await.unwrap();
    }

    /// How long it was idle, once it is put to sleep for that.
    async fn idle_for(&self) -> u64 {
        let idle = |event: &RuntimeEvent| match event {
            RuntimeEvent::SleepRequested { cause: SleepCause::Idle { idle_for }, .. } => Some(idle_for.as_secs()),
            _ => None,
        };
        let event = self.happened("put to sleep for being idle", |event| idle(event).is_some()).await;
        idle(&event).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_on_a_revoked_host_is_lost_at_once_though_its_lease_holds() {
    let site = Site::new().await;
    let ticking = site.tick();
    site.ready_by_hand(site.workspace, LONG).await;
    let (host, now) = (HostId::from_uuid(Uuid::from_u128(9)), site.now());
    let (on, context) = (Resource::Host { org: acme(), host }, Context::new(now));
    let permit = permit_of(&site.log, acme(), Action::HostEnrol, on, now).await;
    let (name, token, lifetime) = ("builder".parse().unwrap(), TokenDigest::of(b"token"), Millis::from_minutes(15));
    hosts::issue_enrolment(&site.commands, &permit, &context, host, name, token, lifetime).await.unwrap();
    assert!(ready(&site.state_of(site.workspace).await));
    let permit = permit_of(&site.log, acme(), Action::HostRevoke, on, now).await;
    hosts::execute(&site.commands, &permit, &Context::new(now), host, &HostCommand::Revoke).await.unwrap();
    let lost = site.happened("it is lost", |event| matches!(event, RuntimeEvent::Lost { .. })).await;
    assert_eq!(lost, RuntimeEvent::Lost { epoch: Epoch(1), closed_at: now });
    ticking.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lapsed_lease_closes_at_its_end_however_late_that_is_seen() {
    let site = Site::new().await;
    let ticking = site.tick();
    site.ready_by_hand(site.workspace, Millis::from_secs(30)).await;
    let lease_until = site.now().plus(Millis::from_secs(30));
    // Use keeps idle sleep out of it.
    for seconds in [29, 29] {
        site.clock.skip(Millis::from_secs(seconds));
        site.used(0).await;
    }
    site.clock.skip(Millis::from_secs(2));
    let lost = site.happened("lost", |event| matches!(event, RuntimeEvent::Lost { .. })).await;
    assert_eq!(lost, RuntimeEvent::Lost { epoch: Epoch(1), closed_at: lease_until });
    ticking.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn use_moves_the_start_of_the_idle_time() {
    let site = Site::new().await;
    let canary = site.another("canary").await;
    let ticking = site.tick();
    site.ready_by_hand(site.workspace, LONG).await;
    site.ready_by_hand(canary, LONG).await;
    site.clock.skip(Millis::from_secs(20));
    site.used(0).await;
    site.clock.skip(Millis::from_secs(20));
    site.until_of(canary, "the unused one goes to sleep", |state| matches!(state, Runtime::Sleeping { .. })).await;
    assert!(ready(&site.state_of(site.workspace).await));
    site.clock.skip(Millis::from_secs(11));
    assert_eq!(site.idle_for().await, 31);
    ticking.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keeping_awake_puts_idle_sleep_off_and_that_is_recorded_once() {
    let site = Site::new().await;
    let ticking = site.tick();
    site.ready_by_hand(site.workspace, LONG).await;
    let until = site.now().plus(Millis::from_minutes(10));
    let permit = site.permit(site.workspace, Action::RuntimeKeepAwake).await;
    let (context, reason) = (Context::new(site.now()), "demo".to_owned());
    runtimes::keep_awake(&site.commands, &permit, &context, site.workspace.id, owner(), until, reason).await.unwrap();
    site.clock.skip(Millis::from_minutes(5));
    let postponed = |event: &RuntimeEvent| matches!(event, RuntimeEvent::SleepPostponed { .. });
    let event = site.happened("postponed", postponed).await;
    assert_eq!(event, RuntimeEvent::SleepPostponed { cause: PostponeCause::KeepAwake { until } });
    assert!(ready(&site.state_of(site.workspace).await));
    site.clock.skip(Millis::from_minutes(5));
    assert_eq!(site.idle_for().await, 600);
    assert_eq!(site.events().await.into_iter().filter(postponed).count(), 1);
    ticking.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_stream_puts_idle_sleep_off_until_its_end_was_reported() {
    let site = Site::new().await;
    let ticking = site.tick();
    site.ready_by_hand(site.workspace, LONG).await;
    site.clock.skip(Millis::from_secs(1));
    site.used(2).await;
    site.clock.skip(Millis::from_secs(30));
    let event = site.happened("postponed", |event| matches!(event, RuntimeEvent::SleepPostponed { .. })).await;
    assert_eq!(event, RuntimeEvent::SleepPostponed { cause: PostponeCause::OpenStreams { count: 2 } });
    site.used(0).await;
    site.clock.skip(Millis::from_secs(30));
    assert_eq!(site.idle_for().await, 30);
    ticking.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_a_gateway_that_says_nothing_any_more_keep_nothing_awake() {
    let site = Site::new().await;
    let ticking = site.tick();
    site.ready_by_hand(site.workspace, LONG).await;
    site.clock.skip(Millis::from_secs(1));
    site.used(2).await;
    site.clock.skip(Millis::from_secs(30));
    site.happened("postponed", |event| matches!(event, RuntimeEvent::SleepPostponed { .. })).await;
    site.clock.skip(Millis::from_secs(1));
    assert_eq!(site.idle_for().await, 31);
    ticking.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_organizations_cap_goes_before_a_longer_idle_time() {
    let site = Site::new().await;
    let patient = manifest(SERVER).replace("idle_sleep: 30s", "idle_sleep: 12h");
    let thing = site.workspace_of(acme(), site.workspace.project, "patient", &patient).await;
    let permit =
        permit_of(&site.log, acme(), Action::OrganizationChangePolicy, Resource::Organization(acme()), site.now())
            .await;
    let policy = OrganizationPolicy { idle_sleep_max: Millis::from_minutes(1), ..OrganizationPolicy::default() };
    let (by, now) = (permit.actor(), site.now());
    let command = OrganizationCommand::ChangePolicy { by, policy, provider: None, now };
    organizations::change(&site.commands, &permit, &Context::new(site.now()), &command).await.unwrap();
    let ticking = site.tick();
    site.ready_by_hand(thing, LONG).await;
    site.clock.skip(Millis::from_secs(60));
    site.until_of(thing, "asleep", |state| matches!(state, Runtime::Sleeping { .. })).await;
    ticking.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_allows_less_shortens_what_is_kept_awake_already() {
    let site = Site::new().await;
    let ticking = site.tick();
    site.ready_by_hand(site.workspace, LONG).await;
    let asked_at = site.now();
    let until = asked_at.plus(Millis::from_hours(2));
    let permit = site.permit(site.workspace, Action::RuntimeKeepAwake).await;
    let (context, reason) = (Context::new(asked_at), "demo".to_owned());
    runtimes::keep_awake(&site.commands, &permit, &context, site.workspace.id, owner(), until, reason).await.unwrap();
    site.clock.skip(Millis::from_minutes(5));
    let postponed = |event: &RuntimeEvent| matches!(event, RuntimeEvent::SleepPostponed { .. });
    site.happened("postponed", postponed).await;
    let permit =
        permit_of(&site.log, acme(), Action::OrganizationChangePolicy, Resource::Organization(acme()), site.now())
            .await;
    let policy = OrganizationPolicy { keep_awake_max: Millis::from_minutes(10), ..OrganizationPolicy::default() };
    let (by, now) = (permit.actor(), site.now());
    let command = OrganizationCommand::ChangePolicy { by, policy, provider: None, now };
    organizations::change(&site.commands, &permit, &Context::new(site.now()), &command).await.unwrap();
    let shortened = |event: &RuntimeEvent| matches!(event, RuntimeEvent::KeepAwakeShortened { .. });
    let event = site.happened("shortened", shortened).await;
    assert_eq!(event, RuntimeEvent::KeepAwakeShortened { until: asked_at.plus(Millis::from_minutes(10)) });
    assert!(ready(&site.state_of(site.workspace).await));
    site.clock.skip(Millis::from_minutes(5));
    assert!(site.idle_for().await >= 600);
    assert_eq!(site.events().await.into_iter().filter(shortened).count(), 1);
    ticking.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_closed_at_its_end() {
    let site = Site::new().await;
    let ticking = site.tick();
    let permit = site.permit(site.workspace, Action::LinkIssue).await;
    let new = links::NewLink {
        workspace: site.workspace.id,
        service: "web".parse().unwrap(),
        families: None,
        lifetime: Some(Millis::from_minutes(5)),
        label: "review".to_owned(),
        wake_budget: None,
        issued_by: owner(),
    };
    links::issue(&site.commands, &permit, &Context::new(site.now()), new).await.unwrap();
    let expired = async || {
        let history = site.history().await;
        history.iter().any(|event| matches!(event, Event::DevLink(DevLinkEvent::Expired))).then_some(())
    };
    site.clock.skip(Millis::from_minutes(5));
    eventually("the link is closed", DEADLINE, expired).await;
    ticking.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_and_a_sleep_whose_host_is_gone_are_given_up() {
    let site = Site::new().await;
    let ticking = site.tick();
    let (epoch, host) = (Epoch(1), HostId::from_uuid(Uuid::from_u128(9)));
    site.wake().await;
    site.report(site.workspace, &RuntimeCommand::ChooseHost { epoch, host }).await.unwrap();
    let going = site.another("going").await;
    site.ready_by_hand(going, LONG).await;
    site.sleep_of(going).await;
    site.wake_of(going).await;
    site.clock.skip(Millis::from_secs(330));
    let failed = site.happened("failed", |event| matches!(event, RuntimeEvent::Failed { .. })).await;
    let RuntimeEvent::Failed { reason, .. } = failed else { unreachable!("it was looked for") };
    assert_eq!(reason, "the host was lost while waking");
    site.until_of(going, "the queued wake follows", |state| state.epoch() == Epoch(2)).await;
    ticking.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_as_root_whose_host_is_none_any_more_or_stays_away_is_lost_once_its_window_is_over() {
    for revoked in [false, true] {
        let site = Site::new().await;
        register(&site).await;
        site.ready_by_hand(site.workspace, LONG).await;
        site.runs_as_root().await;
        let ticking = site.tick();
        let closed = |event: &RootWindowEvent| matches!(event, RootWindowEvent::Closed { .. });
        let ended = |event: &RootWindowEvent| matches!(event, RootWindowEvent::CommandEnded { .. });
        site.clock.skip(Millis::from_minutes(31));
        eventually("its closeout", DEADLINE, async || site.of_root(closed).await).await;
        site.clock.skip(Millis::from_minutes(50));
        tokio::time::sleep(std::time::Duration::from_millis(1_500)).await; // pause: for timers that should not fire
        assert_eq!(site.of_root(ended).await, None, "its host may come back");
        if revoked {
            let host = HostId::from_uuid(Uuid::from_u128(9));
            let resource = Resource::Host { org: acme(), host };
            let permit = permit_of(&site.log, acme(), Action::HostRevoke, resource, site.now()).await;
            hosts::revoke(&site.commands, &permit, &Context::new(site.now()), host).await.unwrap();
        } else {
            site.clock.skip(ROOT_LOST_AFTER);
        }
        let event = eventually("its end", DEADLINE, async || site.of_root(ended).await).await;
        let RootWindowEvent::CommandEnded { ended } = event else { unreachable!() };
        assert_eq!((ended.outcome, ended.code, ended.changes), (RootOutcome::Lost, None, None));
        ticking.stop().await;
    }
}
