//! Specifications of the authorization view: memberships, grants, sessions and links as facts.
