//! A table of footbridge beside others, taken in one run.

use crate::meter::{Meter, Subject, Times, number, verdict};

/// A line of the table.
pub struct Row {
    workload: &'static str,
    processors: usize,
    ours: usize,
    peer: Option<usize>,
    who: &'static str,
    aim: Option<f64>,
}

/// Lines, and what they compare.
#[derive(Default)]
pub struct Table {
    subjects: Vec<Subject>,
    rows: Vec<Row>,
}

impl Table {
    /// Adds a line. A subject that an earlier line has is measured once: it is known by its name.
    /// `peer`: who, and what of theirs. `aim`: so many times as fast as the peer.
    pub fn row(
        &mut self,
        workload: &'static str,
        processors: usize,
        ours: Subject,
        (who, peer): (&'static str, Option<Subject>),
        aim: Option<f64>,
    ) {
        let ours = self.subject(ours);
        let peer = peer.map(|peer| self.subject(peer));
        self.rows.push(Row { workload, processors, ours, peer, who, aim });
    }

    fn subject(&mut self, subject: Subject) -> usize {
        let known = self.subjects.iter().position(|s| s.name == subject.name);
        known.unwrap_or_else(|| {
            self.subjects.push(subject);
            self.subjects.len() - 1
        })
    }

    /// Measures everything, in turn, and prints the lines. Ratios: the peer's time to footbridge's,
    /// of the minima and of the medians. A median that is far from its minimum says that much
    /// depends on who ran where, or that the machine does something else.
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
                row.who,
                &or_dash(peer.map(|peer| number(peer.least))),
                &or_dash(peer.map(|peer| number(peer.median))),
                &or_dash(ratio.map(number)),
                &or_dash(ratio_of_medians.map(number)),
                &aim,
            ]);
        }
    }
}

/// Whether the ratio of the minima reaches an aim, and, where they disagree, that of the medians.
fn outcome((of_minima, of_medians): (f64, f64), aim: f64) -> String {
    let [minima, medians] = [of_minima, of_medians].map(|ratio| verdict(ratio >= aim));
    if minima == medians { minima.into() } else { format!("{minima}; medians {medians}") }
}

/// One line, in the columns of the table.
pub fn line(cells: [&str; 10]) {
    let [workload, processors, ours, median, who, peer, its_median, ratio, of_medians, aim] = cells;
    let line = format!(
        "  {workload:<42}{processors:>3}{ours:>11}{median:>8}  {who:<11}{peer:>7}{its_median:>8}\
         {ratio:>7}{of_medians:>8}  {aim}"
    );
    println!("{}", line.trim_end());
}
