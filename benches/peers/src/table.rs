//! A table of footbridge and its peers, measured in one run.

use crate::meter::{Meter, Subject, Times, number, verdict};

/// A row of the table.
pub struct Row {
    workload: &'static str,
    processors: usize,
    ours: usize,
    peer: Option<usize>,
    peer_name: &'static str,
    aim: Option<f64>,
}

/// The rows, and the subjects that they compare.
#[derive(Default)]
pub struct Table {
    subjects: Vec<Subject>,
    rows: Vec<Row>,
}

impl Table {
    /// Adds a row. Subjects are identified by their names, so a subject of an earlier row is
    /// measured once. `peer` is the name of the peer and its subject, `aim` the least ratio that is
    /// aimed at.
    pub fn row(
        &mut self,
        workload: &'static str,
        processors: usize,
        ours: Subject,
        (peer_name, peer): (&'static str, Option<Subject>),
        aim: Option<f64>,
    ) {
        let ours = self.subject(ours);
        let peer = peer.map(|peer| self.subject(peer));
        self.rows.push(Row { workload, processors, ours, peer, peer_name, aim });
    }

    fn subject(&mut self, subject: Subject) -> usize {
        let known = self.subjects.iter().position(|s| s.name == subject.name);
        known.unwrap_or_else(|| {
            self.subjects.push(subject);
            self.subjects.len() - 1
        })
    }

    /// Measures all subjects in turn, and prints the rows. A ratio is the peer's time divided by
    /// footbridge's, for the minima and for the medians. A median far above its minimum means that
    /// the time depends on the placement of goroutines, or that the machine was busy.
    pub fn print(mut self, title: &str, meter: Meter) {
        let times: Vec<Times> =
            meter.samples(&mut self.subjects).into_iter().map(Times::of).collect();
        println!("\n{title} (ns, minimum and median of {} rounds)", meter.rounds);
        line(["", "Ps", "footbridge", "median", "peer", "", "median", "ratio", "median", "aim"]);
        for row in &self.rows {
            let ours = &times[row.ours];
            let peer = row.peer.map(|peer| &times[peer]);
            let or_dash = |cell: Option<String>| cell.unwrap_or_else(|| "-".into());
            let ratio = peer.map(|peer| peer.least / ours.least);
            let ratio_of_medians = peer.map(|peer| peer.median / ours.median);
            let aim = match (row.aim, ratio.zip(ratio_of_medians)) {
                (Some(aim), Some(ratios)) => format!(">= {aim}: {}", outcome(ratios, aim)),
                (Some(aim), None) => format!(">= {aim}"),
                (None, _) => String::new(),
            };
            line([
                row.workload,
                &row.processors.to_string(),
                &number(ours.least),
                &number(ours.median),
                row.peer_name,
                &or_dash(peer.map(|peer| number(peer.least))),
                &or_dash(peer.map(|peer| number(peer.median))),
                &or_dash(ratio.map(number)),
                &or_dash(ratio_of_medians.map(number)),
                &aim,
            ]);
        }
    }
}

/// Whether the ratio of the minima reaches the aim. Adds the verdict on the medians where it
/// differs.
fn outcome((of_minima, of_medians): (f64, f64), aim: f64) -> String {
    let [minima, medians] = [of_minima, of_medians].map(|ratio| verdict(ratio >= aim));
    if minima == medians { minima.into() } else { format!("{minima}; medians {medians}") }
}

/// Prints one line in the columns of the table.
pub fn line(cells: [&str; 10]) {
    let [workload, processors, ours, median, who, peer, its_median, ratio, of_medians, aim] = cells;
    let line = format!(
        "  {workload:<42}{processors:>3}{ours:>11}{median:>8}  {who:<11}{peer:>7}{its_median:>8}\
         {ratio:>7}{of_medians:>8}  {aim}"
    );
    println!("{}", line.trim_end());
}
