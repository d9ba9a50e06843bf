//! Root windows whose reactor begins before the rights are known.

use std::sync::Arc;

use async_trait::async_trait;
use envforge_agent::Host;
use envforge_commands::root_windows::{self, NewRootWindow};
use envforge_commands::{Context, organizations};
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::Actor;
use envforge_domain::event::Event;
use envforge_domain::ids::{HostId, RootWindowId};
use envforge_domain::organization::{OrganizationCommand, OrganizationPolicy};
use envforge_domain::root_window::{RootAccess, RootMode, RootOutcome, RootPolicy, RootWindowEvent};
use envforge_domain::runtime::{Epoch, RuntimeCommand};
use envforge_eventlog::{Checkpoint, Filter, Follow, LogError, SharedLog};
use envforge_projections::Hot;
use envforge_reactors::RootReactor;
use envforge_runtime::LocalHost;
use envforge_testkit::{InterferedLog, Interference, eventually};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::site::*;

/// The site's log, of which nobody who follows it hears that they have everything until that is told.
struct Late {
    log: SharedLog,
    told: watch::Sender<bool>,
}

#[async_trait]
impl Interference for Late {
    fn real(&self) -> &SharedLog {
        &self.log
    }

    async fn follow(
        &self,
        from: Checkpoint,
        filter: Filter,
    ) -> Result<BoxStream<'static, Result<Follow, LogError>>, LogError> {
        let told = self.told.subscribe();
        let late = self.log.follow(from, filter).await?.then(move |next| {
            let mut told = told.clone();
            async move {
                if let Ok(Follow::Caught { .. }) = next {
                    let _ = told.wait_for(|told| *told).await;
                }
                next
            }
        });
        Ok(late.boxed())
    }
}

impl Site {
    /// A break-glass window whose command was asked for, and which was revoked before any host took it.
    async fn revoked_before_it_ran(&self) -> RootWindowId {
        let (epoch, host) = (Epoch(1), HostId::from_uuid(Uuid::from_u128(9)));
        self.wake().await;
        self.report(self.workspace, &RuntimeCommand::ChooseHost { epoch, host }).await.unwrap();
        self.report(self.workspace, &ready_on(host)).await.unwrap();
        let (by, context) = (Actor::User(owner()), || Context::new(self.now()));
        let on_org = Resource::Organization(acme());
        let permit = permit_of(&self.log, acme(), Action::OrganizationChangePolicy, on_org, self.now()).await;
        let policy = OrganizationPolicy { root: RootPolicy::BreakGlass, ..OrganizationPolicy::default() };
        let command = OrganizationCommand::ChangePolicy { by, policy, provider: None, now: self.now() };
        organizations::change(&self.commands, &permit, &context(), &command).await.unwrap();
        let permit = self.permit(self.workspace, Action::RootBreakGlass).await;
        let new = NewRootWindow {
            workspace: self.workspace.id,
            mode: RootMode::BreakGlass,
            access: RootAccess::Command,
            reason: "to see what becomes of it".to_owned(),
            length: None,
            pending: 0,
        };
        let (window, _) = root_windows::request(&self.commands, &permit, &context(), new).await.unwrap();
        let Resource::Workspace { org, project, workspace } = self.workspace.resource() else {
            unreachable!("it is one")
        };
        let resource = Resource::RootWindow { org, project, workspace, window };
        let permit = permit_of(&self.log, acme(), Action::RootRun, resource, self.now()).await;
        let words = vec!["true".to_owned()];
        root_windows::run(&self.commands, &permit, &context(), window, words).await.unwrap();
        let permit = permit_of(&self.log, acme(), Action::RootRevoke, resource, self.now()).await;
        root_windows::revoke(&self.commands, &permit, &context(), window, None).await.unwrap();
        window
    }

    async fn root_ends(&self) -> Vec<RootOutcome> {
        let ended = |event| match event {
            Event::RootWindow(RootWindowEvent::CommandEnded { ended }) => Some(ended.outcome),
            _ => None,
        };
        self.history().await.into_iter().filter_map(ended).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_reactor_that_began_before_the_rights_were_known_looks_again_once_they_are() {
    let site = Site::new().await;
    site.revoked_before_it_ran().await;
    let state = site.directory.path().join("runtime");
    let (host, _leftovers) = LocalHost::open(envforge_runtime::Config::new(&state)).await.unwrap();
    let late = Arc::new(InterferedLog(Late { log: Arc::clone(&site.log), told: watch::channel(false).0 }));
    let stop = CancellationToken::new();
    let hot = Hot::start(Arc::clone(&late) as SharedLog, stop.clone());
    let last = site.log.head().await.unwrap().position;
    hot.wait_for(last, DEADLINE).await.unwrap();
    assert_eq!(
        *hot.authorization.root_commands_count().borrow(),
        1,
        "one command is under way, by a view that may be old"
    );
    assert!(!hot.is_caught_up());
    let host = Host::Local(host);
    let reactor = RootReactor::new(site.commands.clone(), Arc::clone(&hot), host, Arc::clone(&site.clock) as _);
    let running = tokio::spawn(reactor.run(stop.clone()));
    // It has looked by then, and was told nothing.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await; // pause: it looks five times a second, and must do nothing
    assert_eq!(site.root_ends().await, []);
    late.told.send_replace(true);
    eventually("the end of what never ran", DEADLINE, async || (!site.root_ends().await.is_empty()).then_some(()))
        .await;
    assert_eq!(site.root_ends().await, [RootOutcome::Revoked]);
    stop.cancel();
    running.await.unwrap();
}
