//! A table of footbridge beside others, taken in one run.

use crate::meter::{Meter, Subject, number, verdict};

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

    /// Measures everything, in turn, and prints the lines. Ratios: the peer's time to footbridge's.
    pub fn print(mut self, title: &str, meter: Meter) {
        let times = meter.measure(&mut self.subjects);
        println!("\n{title} (ns, minimum of {} rounds)", meter.rounds);
        line(["", "Ps", "footbridge", "peer", "", "ratio", "aim"]);
        for row in &self.rows {
            let ours = times[row.ours];
            let ratio = row.peer.map(|peer| times[peer] / ours);
            let aim = match (row.aim, ratio) {
                (Some(aim), Some(ratio)) => format!(">= {aim}: {}", verdict(ratio >= aim)),
                (Some(aim), None) => format!(">= {aim}"),
                (None, _) => String::new(),
            };
            line([
                row.workload,
                &row.processors.to_string(),
                &number(ours),
                row.who,
                &row.peer.map_or("-".into(), |peer| number(times[peer])),
                &ratio.map_or("-".into(), |ratio| format!("{ratio:.2}")),
                &aim,
            ]);
        }
    }
}

fn line([workload, processors, ours, who, peer, ratio, aim]: [&str; 7]) {
    let line =
        format!("  {workload:<47}{processors:>3}{ours:>11}  {who:<13}{peer:>10}{ratio:>8}  {aim}");
    println!("{}", line.trim_end());
}
