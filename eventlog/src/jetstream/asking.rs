//! Asking all gateways whether they have read a revocation, and waiting for those that are not heard of.
//!
//! Not here: who they are (`registry`), and their answers (`enrolment`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::Subscriber;
use async_trait::async_trait;
use envforge_domain::commit::Position;
use envforge_domain::ids::GatewayId;
use envforge_domain::revocation::{Uncounted, WhyUncounted};
use futures_util::StreamExt;

use super::enrolment::{Answer, Question};
use super::leader::with_source;
use super::registry::Registry;
use crate::LogError;
use crate::gateways::{Account, Gateways, LEASE};

/// Who has not answered by then is asked again, and looked at: answers may be lost, and leases end.
const ASK_INTERVAL: Duration = Duration::from_millis(250);
/// For the longest lease, and the looks at it.
const PATIENCE: Duration = LEASE.saturating_add(Duration::from_secs(1));

#[async_trait]
impl Gateways for Registry {
    async fn have_read(&self, commits: &[Position]) -> Account {
        let Some(last) = commits.iter().copied().max() else { return Account::default() };
        let mut round = Round::default();
        let deadline = Instant::now() + PATIENCE;
        if let Err(error) = self.wait(commits, &mut round, deadline).await {
            tracing::warn!(%error, "it is not known whether all gateways have read a revocation");
        }
        if round.is_over() {
            self.settled.fetch_max(last.get(), Ordering::AcqRel);
        }
        round.account()
    }

    async fn settle(&self, position: Position) -> Account {
        if position.get() <= self.settled.load(Ordering::Acquire) {
            return Account::default();
        }
        self.have_read(&[position]).await
    }
}

impl Registry {
    /// Asks and looks until the round is over, or the time is.
    async fn wait(&self, commits: &[Position], round: &mut Round, deadline: Instant) -> Result<(), LogError> {
        let unavailable = |error: &dyn std::error::Error| LogError::Unavailable(with_source(error));
        let client = &self.leader.client;
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| unavailable(&error))?;
        let question = Question { commits: commits.iter().map(|commit| commit.get()).collect() };
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
    /// Those that are waited for; `None` before that was found out.
    members: Option<BTreeSet<GatewayId>>,
    gone: BTreeSet<GatewayId>,
    answers: BTreeMap<GatewayId, Option<u32>>,
}

impl Round {
    fn there(&mut self, now: BTreeSet<GatewayId>) {
        match &self.members {
            None => self.members = Some(now),
            Some(members) => self.gone.extend(members.difference(&now)),
        }
    }

    /// Takes answers until the round is over.
    async fn hear(&mut self, answers: &mut Subscriber) {
        while !self.is_over() {
            let Some(message) = answers.next().await else { return };
            if let Ok(Answer { gateway, closed }) = serde_json::from_slice(&message.payload)
                && let Ok(gateway) = gateway.parse()
            {
                self.answers.insert(gateway, closed);
            }
        }
    }

    fn waits_for(&self, gateway: &GatewayId) -> bool {
        !self.answers.contains_key(gateway) && !self.gone.contains(gateway)
    }

    fn is_over(&self) -> bool {
        self.members.as_ref().is_some_and(|members| !members.iter().any(|gateway| self.waits_for(gateway)))
    }

    fn account(&self) -> Account {
        let Some(members) = &self.members else {
            let uncounted = vec![Uncounted { gateway: None, why: WhyUncounted::Unknown }];
            return Account { sockets: 0, uncounted };
        };
        let mut account = Account::default();
        for gateway in members {
            let why = match self.answers.get(gateway) {
                Some(Some(closed)) => {
                    account.sockets = account.sockets.saturating_add(*closed);
                    continue;
                }
                Some(None) => WhyUncounted::StillClosing,
                None if self.gone.contains(gateway) => WhyUncounted::Lost,
                None => WhyUncounted::Silent,
            };
            account.uncounted.push(Uncounted { gateway: Some(*gateway), why });
        }
        account
    }
}
