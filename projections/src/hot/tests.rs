//! Specifications of the follower that feeds the hot views: freshness, failure, waiting.
