//! Every event of every aggregate.

#[derive(Clone, Debug, PartialEq)]
pub enum Event {}
