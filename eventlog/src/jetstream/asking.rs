//! Asking all gateways, and processes of the API, whether they have read a revocation, and waiting for those that are not heard of.
//!
//! Not here: who they are (`registry`), and their answers (`enrolment`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::Subscriber;
use async_trait::async_trait;
use envforge_domain::commit::Position;
use envforge_domain::revocation::{Uncounted, UncountedShells, WhyShellsUnknown, WhyUncounted};
use futures_util::StreamExt;

use super::enrolment::{Answer, Question};
use super::leader::with_source;
use super::registry::{Member, Registry};
use crate::LogError;
use crate::gateways::{Account, Gateways, LEASE};

/// Who has not answered by then is asked again, and looked at: answers may be lost, and leases end.
const ASK_INTERVAL: Duration = Duration::from_millis(250);
/// For the longest lease, and the looks at it.
const PATIENCE: Duration = LEASE.saturating_add(Duration::from_secs(1));

#[async_trait]
impl Gateways for Registry {
    async fn have_read(&self, commits: &[Position]) -> Account {
        self.ask(commits, true).await
    }

    async fn settle(&self, position: Position) -> Account {
        if position.get() <= self.settled.load(Ordering::Acquire) {
            return Account::default();
        }
        self.ask(&[position], false).await
    }
}

impl Registry {
    /// Asks the gateways and, with their `shells`, the processes of the API.
    async fn ask(&self, commits: &[Position], shells: bool) -> Account {
        let Some(last) = commits.iter().copied().max() else { return Account::default() };
        let mut round = Round { shells, ..Round::default() };
        let deadline = Instant::now() + PATIENCE;
        if let Err(error) = self.wait(commits, &mut round, deadline).await {
            tracing::warn!(%error, "it is not known whether everybody has read a revocation");
        }
        if round.is_over() {
            self.settled.fetch_max(last.get(), Ordering::AcqRel);
        }
        round.account()
    }

    /// Asks and looks until the round is over, or the time is.
    async fn wait(&self, commits: &[Position], round: &mut Round, deadline: Instant) -> Result<(), LogError> {
        let unavailable = |error: &dyn std::error::Error| LogError::Unavailable(with_source(error));
        let client = &self.leader.client;
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| unavailable(&error))?;
        let commits = commits.iter().map(|commit| commit.get()).collect();
        let question = Question { commits, shells: round.shells };
        let question = bytes::Bytes::from(serde_json::to_vec(&question).map_err(|error| unavailable(&error))?);
        let mut trouble = None;
        while !round.is_over() && Instant::now() < deadline {
            let asked = client.publish_with_reply(self.asked_at.clone(), inbox.clone(), question.clone()).await;
            asked.map_err(|error| unavailable(&error))?;
            // Whoever enters after this has read what is asked about.
            let members = if round.members.is_none() { self.members().await } else { self.look().await };
            match members {
                Ok(members) => round.there(members),
                Err(error) => trouble = Some(error),
            }
            let until = deadline.min(Instant::now() + ASK_INTERVAL);
            let _ = tokio::time::timeout_at(until.into(), round.hear(&mut answers)).await;
        }
        trouble.filter(|_| !round.is_over()).map_or(Ok(()), Err)
    }
}

/// What was heard so far.
#[derive(Default)]
struct Round {
    /// Processes of the API are waited for, too.
    shells: bool,
    /// Those that are waited for; `None` before that was found out.
    members: Option<BTreeSet<Member>>,
    gone: BTreeSet<Member>,
    answers: BTreeMap<Member, Option<u32>>,
}

impl Round {
    fn there(&mut self, now: BTreeSet<Member>) {
        match &self.members {
            None => {
                let asked = |member: &Member| self.shells || matches!(member, Member::Gateway(_));
                self.members = Some(now.into_iter().filter(asked).collect());
            }
            Some(members) => self.gone.extend(members.difference(&now)),
        }
    }

    /// Takes answers until the round is over.
    async fn hear(&mut self, answers: &mut Subscriber) {
        while !self.is_over() {
            let Some(message) = answers.next().await else { return };
            if let Ok(Answer { member, closed }) = serde_json::from_slice(&message.payload)
                && let Ok(member) = member.parse()
            {
                self.answers.insert(member, closed);
            }
        }
    }

    fn waits_for(&self, member: &Member) -> bool {
        !self.answers.contains_key(member) && !self.gone.contains(member)
    }

    fn is_over(&self) -> bool {
        self.members.as_ref().is_some_and(|members| !members.iter().any(|member| self.waits_for(member)))
    }

    fn account(&self) -> Account {
        let Some(members) = &self.members else {
            return Account {
                uncounted: vec![Uncounted { gateway: None, why: WhyUncounted::Unknown }],
                shells_uncounted: vec![UncountedShells { process: None, why: WhyShellsUnknown::Unknown }],
                ..Account::default()
            };
        };
        let mut account = Account::default();
        for member in members {
            let answer = self.answers.get(member).copied();
            let gone = self.gone.contains(member);
            match *member {
                Member::Gateway(gateway) => {
                    let why = match answer {
                        Some(Some(closed)) => {
                            account.sockets = account.sockets.saturating_add(closed);
                            continue;
                        }
                        Some(None) => WhyUncounted::StillClosing,
                        None if gone => WhyUncounted::Lost,
                        None => WhyUncounted::Silent,
                    };
                    account.uncounted.push(Uncounted { gateway: Some(gateway), why });
                }
                Member::Api(process) => {
                    let why = match answer {
                        Some(Some(closed)) => {
                            account.shells = account.shells.saturating_add(closed);
                            continue;
                        }
                        Some(None) => WhyShellsUnknown::StillClosing,
                        None if gone => WhyShellsUnknown::Lost,
                        None => WhyShellsUnknown::Silent,
                    };
                    account.shells_uncounted.push(UncountedShells { process: Some(process), why });
                }
            }
        }
        account
    }
}
