//! Specifications of placement: packing, and never two organizations on one host.
