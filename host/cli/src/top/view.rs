//! Which enclave is chosen, how far its details are scrolled, and what fits where on the screen.

use std::time::Duration;

use formats::time::Utc;
use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::Rect;
use ratatui::style::{Style, Stylize};
use ratatui::text::Line;

use super::details::details;
use super::enclaves::Enclave;
use super::overview::overview;

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asks {
    Nothing,
    Drawing,
    /// To end as after a `q`.
    Ending,
    /// To end as by SIGINT.
    Interrupting,
    /// To end as by SIGHUP.
    HangingUp,
    /// To stop as by SIGTSTP.
    Stopping,
}

/// What the user has chosen.
#[derive(Debug, Default)]
pub(super) struct View {
    /// The chosen enclave's place.
    chosen: usize,
    /// The first row and the first line of the details that are shown.
    first_row: usize,
    first_line: usize,
}

/// How many lines of the details Page Down passes over.
const PAGE: usize = 8;

impl View {
    /// Does what a key stands for, where there are so many enclaves.
    pub(super) fn press(&mut self, key: KeyEvent, enclaves: usize) -> Asks {
        let last = enclaves.saturating_sub(1);
        let chosen = match key.code {
            KeyCode::Char('c') if key.modifiers == KeyModifiers::CONTROL => return Asks::Interrupting,
            KeyCode::Char('z') if key.modifiers == KeyModifiers::CONTROL => return Asks::Stopping,
            KeyCode::Char('q' | 'Q') | KeyCode::Esc => return Asks::Ending,
            KeyCode::Up | KeyCode::Char('k') => self.chosen.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => (self.chosen + 1).min(last),
            KeyCode::Home => 0,
            KeyCode::End => last,
            KeyCode::PageUp => {
                self.first_line = self.first_line.saturating_sub(PAGE);
                return Asks::Drawing;
            }
            KeyCode::PageDown => {
                self.first_line += PAGE;
                return Asks::Drawing;
            }
            _ => return Asks::Nothing,
        };
        if chosen != self.chosen {
            (self.chosen, self.first_line) = (chosen, 0);
        }
        Asks::Drawing
    }

    /// Draws everything: a title, the table with a row for each enclave, and the details of the chosen one.
    pub(super) fn draw(&mut self, frame: &mut Frame<'_>, enclaves: &[Enclave], now: Utc, interval: Duration) {
        let area = frame.area();
        let width = usize::from(area.width);
        let (head, rows) = overview(enclaves, now, width);
        let title = format!("teemark top  {now}  every {} s  q quits, arrows choose", interval.as_secs_f64());
        let mut lines = vec![Line::from(title).dim(), head.style(Style::new().reversed())];
        let height = usize::from(area.height).saturating_sub(lines.len());
        // The table gets half of the screen at most.
        let shown = rows.len().min((height / 2).max(1));
        self.first_row = self.first_row.clamp((self.chosen + 1).saturating_sub(shown).min(self.chosen), self.chosen);
        self.first_row = self.first_row.min(rows.len() - shown);
        let visible = rows.into_iter().enumerate().skip(self.first_row).take(shown);
        let several = enclaves.len() > 1;
        lines.extend(
            visible
                .map(|(at, row)| if several && at == self.chosen { row.style(Style::new().reversed()) } else { row }),
        );
        lines.push(Line::default());
        let room = usize::from(area.height).saturating_sub(lines.len());
        let details = enclaves.get(self.chosen).map(|enclave| details(enclave, now, width)).unwrap_or_default();
        self.first_line = self.first_line.min(details.len().saturating_sub(room));
        lines.extend(details.into_iter().skip(self.first_line).take(room));
        for (line, y) in lines.into_iter().zip(area.y..area.bottom()) {
            frame.render_widget(line, Rect { y, height: 1, ..area });
        }
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::enclaves::tests::{answers, silent};
    use super::super::figures::tests::look;
    use super::super::page::tests::metrics;
    use super::*;

    fn press(view: &mut View, code: KeyCode, enclaves: usize) -> Asks {
        view.press(KeyEvent::new(code, KeyModifiers::NONE), enclaves)
    }

    /// So many enclaves, of which the second does not answer.
    fn enclaves(number: u8) -> Vec<Enclave> {
        let mut all: Vec<Enclave> = (1..=number).map(|i| Enclave::new(format!("http://10.0.0.{i}:3001"))).collect();
        for (i, enclave) in all.iter_mut().enumerate() {
            enclave.take(if i == 1 { silent(1, "timeout: global") } else { answers(0, &metrics(100), "") }, None);
        }
        all
    }

    fn drawn(view: &mut View, enclaves: &[Enclave], (width, height): (u16, u16)) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame, enclaves, look(2, "").time, Duration::from_secs(2))).unwrap();
        let cells = terminal.backend().buffer().content();
        cells.chunks(width.into()).map(|row| row.iter().map(|cell| cell.symbol()).collect()).collect()
    }

    #[test]
    fn a_usual_terminal_has_every_enclave_and_the_details_of_the_chosen_one() {
        let (enclaves, mut view) = (enclaves(3), View::default());
        let screen = drawn(&mut view, &enclaves, (80, 24));
        assert!(screen[1].starts_with("ENCLAVE") && screen[2].starts_with("10.0.0.1:3001"), "{screen:#?}");
        assert!(screen[3].contains("no answer!!  since 08:00:01Z: timeout: global"), "{screen:#?}");
        assert!(screen[6].starts_with("http://10.0.0.1:3001") && screen[7].starts_with("ready"), "{screen:#?}");
        assert!(screen.iter().any(|line| line.starts_with("ROUTE")), "{screen:#?}");
        press(&mut view, KeyCode::Down, 3);
        let screen = drawn(&mut view, &enclaves, (80, 24));
        assert!(screen[6].starts_with("http://10.0.0.2:3001") && screen[7].starts_with("no answer!!"), "{screen:#?}");
    }

    #[test]
    fn a_terminal_of_any_size_is_drawn_on_and_the_chosen_row_is_always_shown() {
        let enclaves = enclaves(20);
        let mut view = View::default();
        press(&mut view, KeyCode::End, 20);
        for (width, height) in [(1, 1), (5, 2), (10, 3), (40, 10), (80, 24), (300, 100), (40, 10)] {
            let screen = drawn(&mut view, &enclaves, (width, height));
            if height > 3 {
                assert!(screen.iter().any(|line| line.starts_with("10.0.0.20:3001")), "{screen:#?}");
            }
        }
        let screen = drawn(&mut view, &enclaves, (40, 10));
        assert!(screen[7].starts_with("http://10.0.0.20:3001"), "{screen:#?}");
        assert!(drawn(&mut View::default(), &[], (40, 10))[1].starts_with("ENCLAVE"));
    }

    #[test]
    fn keys_choose_scroll_and_end_and_go_past_no_end() {
        let (mut view, all) = (View::default(), enclaves(3));
        for (code, chosen) in [
            (KeyCode::Up, 0),
            (KeyCode::Down, 1),
            (KeyCode::Char('j'), 2),
            (KeyCode::Down, 2),
            (KeyCode::Char('k'), 1),
            (KeyCode::Home, 0),
            (KeyCode::End, 2),
        ] {
            assert_eq!((press(&mut view, code, 3), view.chosen), (Asks::Drawing, chosen), "{code:?}");
        }
        let first = drawn(&mut view, &all, (80, 12))[6].clone();
        press(&mut view, KeyCode::PageDown, 3);
        assert_ne!(drawn(&mut view, &all, (80, 12))[6], first);
        (0..1000).for_each(|_| _ = press(&mut view, KeyCode::PageDown, 3));
        let end = drawn(&mut view, &all, (80, 12));
        assert!(end[11].starts_with("decrypt "), "{end:#?}");
        (0..3).for_each(|_| _ = press(&mut view, KeyCode::PageUp, 3));
        assert_eq!(drawn(&mut view, &all, (80, 12))[6], first);
        assert_eq!(press(&mut view, KeyCode::Char('x'), 3), Asks::Nothing);
        assert_eq!(press(&mut view, KeyCode::Char('c'), 3), Asks::Nothing);
        for (code, modifiers, asks) in [
            (KeyCode::Char('q'), KeyModifiers::NONE, Asks::Ending),
            (KeyCode::Esc, KeyModifiers::NONE, Asks::Ending),
            (KeyCode::Char('c'), KeyModifiers::CONTROL, Asks::Interrupting),
            (KeyCode::Char('z'), KeyModifiers::CONTROL, Asks::Stopping),
        ] {
            assert_eq!(view.press(KeyEvent::new(code, modifiers), 3), asks);
        }
    }
}
