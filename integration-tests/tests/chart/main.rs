//! Tests of the Helm chart, its plain manifests, dashboard and alerts. They need helm, promtool and the schemas that
//! `cargo xtask setup` brings, but neither root nor a cluster; `kube::chart` of the suite installs the chart.
//!
//! What is generated is written with `UPDATE=1`.

#![forbid(unsafe_code)]

mod alerts;
mod config;
mod golden;
mod helm;
mod labels;
mod manifests;
mod programs;
mod queries;
mod readme;
mod refusals;
mod schemas;
