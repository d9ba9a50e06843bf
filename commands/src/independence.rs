//! Whether somebody owes it to another that they could decide on their root window: read from the log when it is asked, which is
//! rare.
//!
//! It costs the organization's stream, and that of the person, of whoever gave them something, and so on up to those who stand by
//! themselves. What the answer rests on is what the permit of the person guards: the organization's stream and their own. What
//! others' streams say counts for what those gave before, which nothing that comes later changes. Not here: the rule (domain).

use std::collections::BTreeSet;

use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::{Position, Recorded, StreamId};
use envforge_domain::ids::{OrgId, UserId};
use envforge_domain::provenance::{Independence, Others, Provenance, givers, matters};
use envforge_domain::time::UnixMillis;
use envforge_eventlog::{LogError, SharedLog};

use crate::engine::Commands;

const PAGE: usize = 1_000;
/// People whose streams are read to say who could decide instead, the first by id.
const LOOKED_AT_MAX: usize = 50;
/// Names in an answer.
const NAMED_MAX: usize = 5;

/// Who asked for something, and what somebody else is to do about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub requester: UserId,
    pub action: Action,
    pub resource: Resource,
    pub now: UnixMillis,
    /// Whether to look for those who could instead.
    pub others: bool,
}

/// How `decider` stands to the requester, as the log's leader has it.
pub(crate) async fn of(commands: &Commands, decider: UserId, asked: &Asked) -> Result<Independence, LogError> {
    let Asked { requester, action, resource, now, others } = *asked;
    let org = resource.org();
    let mut history = History {
        log: commands.log(),
        org,
        organization: relevant(commands.log(), &StreamId::organization(org)).await?,
        accounts: Vec::new(),
        // What they gave counts for nothing, and so does from whom they had it.
        read: BTreeSet::from([requester]),
    };
    history.read([decider]).await?;
    let left = history.without(requester);
    let Some(on) = left.derived(decider, action, &resource, now) else { return Ok(Independence::Independent) };
    if !others {
        return Ok(Independence::Depends { on, others: Others::default() });
    }
    let mut holders = left.holders(action, &resource, now);
    holders.retain(|holder| *holder != requester && *holder != decider);
    let looked_at: Vec<_> = holders.iter().copied().take(LOOKED_AT_MAX).collect();
    history.read(looked_at.iter().copied()).await?;
    let left = history.without(requester);
    let could = looked_at.into_iter().filter(|other| left.derived(*other, action, &resource, now).is_none());
    let people: Vec<_> = could.take(NAMED_MAX).map(|other| (other, left.name(other).to_owned())).collect();
    let nobody = people.is_empty() && holders.len() <= LOOKED_AT_MAX;
    Ok(Independence::Depends { on, others: Others { people, nobody } })
}

struct History<'a> {
    log: &'a SharedLog,
    org: OrgId,
    organization: Vec<Recorded>,
    accounts: Vec<Recorded>,
    /// Whose streams are in it.
    read: BTreeSet<UserId>,
}

impl History<'_> {
    /// Takes the streams of these people in, and of all from whom they have something.
    async fn read(&mut self, people: impl IntoIterator<Item = UserId>) -> Result<(), LogError> {
        let mut wanted: BTreeSet<UserId> = people.into_iter().collect();
        while let Some(user) = wanted.pop_first() {
            if !self.read.insert(user) {
                continue;
            }
            let own = relevant(self.log, &StreamId::user(self.org, user)).await?;
            wanted.extend(givers(user, &self.organization));
            wanted.extend(givers(user, &own));
            self.accounts.extend(own);
        }
        Ok(())
    }

    fn without(&self, person: UserId) -> Provenance {
        let mut commits: Vec<_> = self.organization.iter().chain(&self.accounts).collect();
        commits.sort_by_key(|recorded| recorded.position);
        let mut left = Provenance::without(person);
        commits.into_iter().for_each(|recorded| left.apply(recorded));
        left
    }
}

/// The commits of a stream that say who gave whom what.
async fn relevant(log: &SharedLog, stream: &StreamId) -> Result<Vec<Recorded>, LogError> {
    let (mut after, mut kept) = (Position::START, Vec::new());
    loop {
        let page = log.read_stream(stream, after, PAGE).await?;
        let full = page.len() == PAGE;
        if let Some(last) = page.last() {
            after = last.position;
        }
        kept.extend(page.into_iter().filter(|recorded| recorded.commit.events.iter().any(matters)));
        if !full {
            return Ok(kept);
        }
    }
}
