//! What the keys do and what the columns mean.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::Line;

use crate::top::view::put;

const LINES: [&str; 21] = [
    "q Esc Ctrl-C  quit                   up down     scroll the processes, also",
    "< >           sort by which column   PgUp PgDn   Home and End",
    "r             the other way round    + -         longer or shorter interval",
    "/             show what matches: parts of role or state, a slot, a pid",
    "p             pause                  Ctrl-Z      stop as a job of the shell",
    "",
    "STATE   ready; suspect: does not answer; draining: finishes what it has; down",
    "S       what the kernel says: R runs, S waits, T is stopped, D, Z (ps(1))",
    "JOBS/S  jobs that ended in a second, well or badly",
    "OPEN    jobs that were given to it and have not ended: its load",
    "CPU%    100 is one core              MEM   resident, shared pages included",
    "RTT     round trip of the last probe ANSW  how long ago it answered last",
    "RST     restarts                     KILL  times the watchdog killed one",
    "WAIT    from the answer with a port until somebody came for the job",
    "SERV    from then until it ended; p50, p99: of those that ended in the last",
    "        seconds, one half and 99 of 100 took no longer",
    "EXPIRED jobs that nobody came for    REFUSED   requests answered -1",
    "REJECTED data connections that nobody waited for",
    "observer: requests for JOBS/S, DONE and FAIL, connections for OPEN",
    "Nothing but shared memory and /proc is read: nobody is asked.",
    "Any key goes back.",
];

/// Draws it.
pub fn draw(buffer: &mut Buffer, area: Rect) {
    for (row, text) in (0..area.height).zip(LINES) {
        put(buffer, area, row, Line::raw(text));
    }
}
