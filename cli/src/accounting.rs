//! `medes accounting`: whom the memory of the cluster is held for, and that the sum is what the kernels count.

use std::collections::BTreeMap;

use medes_proto::{
    account::{Accounting, Held, NodeSum, Row},
    wire,
};
use serde::Serialize;

use crate::{
    client::{Client, QUICK},
    error::CliError,
    human,
    output::{Output, Sheet, plain},
};

#[derive(Debug, clap::Args)]
pub(crate) struct AccountingArgs {
    /// A row for each
    #[arg(long, value_enum, default_value_t)]
    by: By,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum By {
    #[default]
    Tenant,
    Function,
}

/// Bytes. `unique_bytes` and `shared_bytes` of all rows, and of all nodes `agent_bytes` and `nobody_bytes`, are together the
/// `counted_bytes` of all nodes.
#[derive(Serialize)]
struct AccountingView {
    rows: Vec<RowView>,
    nodes: Vec<NodeView>,
}

#[derive(Serialize)]
struct RowView {
    tenant: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    function: Option<String>,
    warm: u32,
    parked: u32,
    dedup: u32,
    unique_bytes: u64,
    shared_bytes: u64,
    process_bytes: u64,
    kernel_bytes: u64,
    file_bytes: u64,
    stored_bytes: u64,
    base_bytes: u64,
    mapped_anon_bytes: u64,
    mapped_file_bytes: u64,
}

#[derive(Serialize)]
struct NodeView {
    node: String,
    counted_bytes: u64,
    held_bytes: u64,
    agent_bytes: u64,
    nobody_bytes: i64,
    failure: Option<String>,
}

impl RowView {
    fn new(tenant: String, function: Option<String>, held: &Held) -> Self {
        Self {
            tenant,
            function,
            warm: held.warm,
            parked: held.parked,
            dedup: held.dedup,
            unique_bytes: held.unique_bytes(),
            shared_bytes: held.shared_bytes,
            process_bytes: held.process_bytes,
            kernel_bytes: held.kernel_bytes,
            file_bytes: held.file_bytes,
            stored_bytes: held.stored_bytes,
            base_bytes: held.base_bytes,
            mapped_anon_bytes: held.mapped_anon_bytes,
            mapped_file_bytes: held.mapped_file_bytes,
        }
    }
}

pub(crate) async fn run(
    AccountingArgs { by }: AccountingArgs,
    client: &Client,
    output: &Output,
) -> Result<(), CliError> {
    let doing = "divide the memory of the cluster";
    let reply = client
        .call(doing, QUICK, async |mut control| control.accounting(wire::AccountingRequest {}).await)
        .await?;
    let accounting =
        Accounting::try_from(reply).map_err(|source| CliError::Reply { doing: doing.into(), source })?;
    let view = view(&accounting, by);
    output.answer(&view, || text(&view, by))
}

fn view(accounting: &Accounting, by: By) -> AccountingView {
    let mut rows: BTreeMap<(String, Option<String>), Held> = BTreeMap::new();
    for Row { tenant, function, held } in &accounting.rows {
        let function = (by == By::Function).then(|| function.to_string());
        *rows.entry((tenant.to_string(), function)).or_default() += *held;
    }
    let node = |sum: &NodeSum| NodeView {
        node: sum.node.to_string(),
        counted_bytes: sum.counted_bytes,
        held_bytes: sum.held_bytes,
        agent_bytes: sum.agent_bytes,
        nobody_bytes: sum.nobody_bytes,
        failure: sum.failure.clone(),
    };
    AccountingView {
        rows: rows
            .into_iter()
            .map(|((tenant, function), held)| RowView::new(tenant, function, &held))
            .collect(),
        nodes: accounting.nodes.iter().map(node).collect(),
    }
}

fn text(view: &AccountingView, by: By) -> String {
    let counted: u64 = view.nodes.iter().map(|node| node.counted_bytes).sum();
    let part = |bytes: u64| human::percent(bytes, counted).unwrap_or_else(|| "-".into());
    let mut headings = vec!["TENANT", ">WARM", ">PARKED", ">DEDUP", ">UNIQUE", ">SHARE", ">TOTAL", ">PART"];
    if by == By::Function {
        headings.insert(1, "FUNCTION");
    }
    let mut sheet = Sheet::new(&headings);
    let row = |name: &str, function: Option<&str>, cells: [String; 7]| {
        let function = (by == By::Function).then(|| function.unwrap_or_default().to_owned());
        std::iter::once(name.to_owned()).chain(function).chain(cells).collect::<Vec<_>>()
    };
    for held in &view.rows {
        let total = held.unique_bytes.saturating_add(held.shared_bytes);
        let cells = [
            held.warm.to_string(),
            held.parked.to_string(),
            held.dedup.to_string(),
            human::bytes(held.unique_bytes),
            human::bytes_or_dash(held.shared_bytes),
            human::bytes(total),
            part(total),
        ];
        sheet.row(row(&held.tenant, held.function.as_deref(), cells));
    }
    let none = || [(); 5].map(|()| String::new());
    let sum = |name: &str, bytes: String, part: String| {
        let [a, b, c, d, e] = none();
        row(name, None, [a, b, c, d, e, bytes, part])
    };
    let agents: u64 = view.nodes.iter().map(|node| node.agent_bytes).sum();
    let nobody: i64 = view.nodes.iter().map(|node| node.nobody_bytes).sum();
    sheet.row(sum("(agents)", human::bytes(agents), part(agents)));
    sheet.row(sum("(nobody)", signed(nobody, human::bytes), signed(nobody, part)));
    sheet.row(sum("(kernel)", human::bytes(counted), part(counted)));
    let silent = view.nodes.iter().filter_map(|node| Some((&node.node, node.failure.as_ref()?)));
    let silent: String =
        silent.map(|(node, why)| format!("nothing is known of {}: {}\n", plain(node), plain(why))).collect();
    sheet.text("nothing") + &silent
}

/// A number that may be less than nothing.
fn signed(bytes: i64, text: impl Fn(u64) -> String) -> String {
    format!("{}{}", if bytes < 0 { "-" } else { "" }, text(bytes.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounting() -> Accounting {
        let row = |tenant: &str, function: &str, process_bytes, shared_bytes| Row {
            tenant: tenant.parse().unwrap(),
            function: function.parse().unwrap(),
            held: Held { warm: 1, process_bytes, shared_bytes, ..Held::default() },
        };
        let node = NodeSum {
            counted_bytes: 1_000,
            held_bytes: 700,
            agent_bytes: 310,
            nobody_bytes: -10,
            ..NodeSum::unknown("n1".parse().unwrap(), String::new())
        };
        Accounting {
            rows: vec![row("a", "f", 300, 50), row("a", "g", 200, 50), row("b", "f", 100, 0)],
            nodes: vec![
                NodeSum { failure: None, ..node },
                NodeSum::unknown("n2".parse().unwrap(), "it is \x1b[31mgone".into()),
            ],
        }
    }

    #[test]
    fn rows_of_a_tenant_are_the_sum_of_its_functions() {
        let by_tenant = view(&accounting(), By::Tenant);
        let rows: Vec<_> =
            by_tenant.rows.iter().map(|row| (&*row.tenant, row.unique_bytes, row.shared_bytes)).collect();
        assert_eq!(rows, [("a", 500, 100), ("b", 100, 0)]);
        assert_eq!(view(&accounting(), By::Function).rows.len(), 3);
    }

    #[test]
    fn the_table_adds_up_and_says_who_is_silent() {
        let text = text(&view(&accounting(), By::Tenant), By::Tenant);
        let line = |begin: &str| {
            let line = text.lines().find(|line| line.starts_with(begin)).unwrap();
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line("a "), "a 2 0 0 500 B 100 B 600 B 60.0 %");
        assert_eq!(line("(agents)"), "(agents) 310 B 31.0 %");
        assert_eq!(line("(nobody)"), "(nobody) -10 B -1.0 %");
        assert_eq!(line("(kernel)"), "(kernel) 1000 B 100.0 %");
        assert!(text.contains("nothing is known of n2: it is  [31mgone\n"), "{text}");
        assert!(super::text(&view(&accounting(), By::Function), By::Function).contains("FUNCTION"));
    }
}
