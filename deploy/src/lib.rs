//! Medes on hosts: what a cluster is made of, how a release gets there, how one replaces another while requests flow.
//!
//! Everything goes through the system's `ssh`; what is done on a host is a few lines of `sh`, which every kind of host
//! has. The host's own state is the truth: there is no record of deployments that could disagree with it.
//!
//! | file | idea |
//! |---|---|
//! | `hosts` | the cluster as `hosts.toml` describes it, checked |
//! | `services` | what is to run on a host, and with which rights |
//! | `units` | the same for systemd |
//! | `certificates` | by what the programs know each other |
//! | `release` | what is copied to a host, and its name, which says what is in it |
//! | `archive` | files as a tar stream |
//! | `elf` | which C library a program needs |
//! | `remote` | the only file that starts `ssh` |
//! | `probe` | what is there on a host |
//! | `check` | whether a host will do |
//! | `plan` | what has to be done, decided before anything is |
//! | `install` | a version's way onto a host and off it |
//! | `control` | starting and ending services, by systemd or `medes-supervise` |
//! | `health` | whether a service does its work |
//! | `roll` | one version replaces another, host after host; back when it fails |
//! | `verbs` | deploy, status, rollback, remove |

pub mod archive;
pub mod certificates;
pub mod check;
pub mod control;
pub mod elf;
pub mod health;
pub mod hosts;
pub mod install;
pub mod plan;
pub mod probe;
pub mod release;
pub mod remote;
pub mod roll;
pub mod service;
pub mod services;
pub mod units;
pub mod verbs;
