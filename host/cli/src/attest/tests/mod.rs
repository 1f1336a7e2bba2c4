//! The checks against documents of real enclaves (`real`) and of the tests' own Nitro module (`made`).

mod made;
#[path = "../../../tests/nsm/mod.rs"]
mod nsm;
mod real;
