//! `strftime` for chat templates, as Python's of a time that knows no zone.

use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Seconds since 1970-01-01 00:00 UTC; 0 if the clock stands before that.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// Formats `seconds` since 1970-01-01 00:00 as C's `strftime` does in the C locale; names and offsets of zones are empty.
///
/// `-` between `%` and the letter leaves the padding out, as glibc does.
///
/// # Errors
/// The directive that is not known.
pub(super) fn strftime(format: &str, seconds: u64) -> Result<String, String> {
    let date = Date::new(seconds);
    let mut text = String::with_capacity(format.len() + 16);
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let directive = chars.next();
        let (padded, letter) = if directive == Some('-') { (false, chars.next()) } else { (true, directive) };
        match letter.and_then(|letter| date.field(letter, padded)) {
            Some(field) => text.push_str(&field),
            None => {
                let dash = if padded { "" } else { "-" };
                let letter = letter.map(String::from).unwrap_or_default();
                return Err(format!("strftime directive \"%{dash}{letter}\" is not known"));
            }
        }
    }
    Ok(text)
}

/// A second in the Gregorian calendar.
struct Date {
    year: u64,
    /// 0..12.
    month: usize,
    /// 1..=31.
    day: u64,
    /// 0 is the first of January.
    day_of_year: u64,
    /// 0 is Sunday.
    weekday: usize,
    hour: u64,
    minute: u64,
    second: u64,
    /// Since 1970.
    seconds: u64,
}

impl Date {
    fn new(seconds: u64) -> Self {
        let days = seconds / 86_400;
        // 1970-01-01 was a Thursday.
        let weekday = usize::try_from((days + 4) % 7).unwrap_or(0);
        let mut year = 1970;
        // Whole cycles of 400 years first, so that no clock makes the loop long.
        let mut rest = days % 146_097;
        year += days / 146_097 * 400;
        while rest >= days_in_year(year) {
            rest -= days_in_year(year);
            year += 1;
        }
        let day_of_year = rest;
        let mut month = 0;
        while rest >= days_in_month(year, month) {
            rest -= days_in_month(year, month);
            month += 1;
        }
        let second = seconds % 86_400;
        Self {
            year,
            month,
            day: rest + 1,
            day_of_year,
            weekday,
            hour: second / 3600,
            minute: second / 60 % 60,
            second: second % 60,
            seconds,
        }
    }

    fn field(&self, letter: char, padded: bool) -> Option<String> {
        let number = |value: u64, width: usize| {
            let width = if padded { width } else { 0 };
            format!("{value:0width$}")
        };
        let spaced = |value: u64| if padded { format!("{value:2}") } else { value.to_string() };
        let compound = |format: &str| strftime(format, self.seconds).ok();
        let hour12 = (self.hour + 11) % 12 + 1;
        Some(match letter {
            'Y' => self.year.to_string(),
            'y' => number(self.year % 100, 2),
            'm' => number(self.month as u64 + 1, 2),
            'd' => number(self.day, 2),
            'e' => spaced(self.day),
            'j' => number(self.day_of_year + 1, 3),
            'H' => number(self.hour, 2),
            'I' => number(hour12, 2),
            'M' => number(self.minute, 2),
            'S' => number(self.second, 2),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            'A' => DAYS[self.weekday].to_owned(),
            'a' => DAYS[self.weekday][..3].to_owned(),
            'B' => MONTHS[self.month].to_owned(),
            'b' | 'h' => MONTHS[self.month][..3].to_owned(),
            'w' => self.weekday.to_string(),
            'C' => number(self.year / 100, 2),
            'G' => self.iso_week().0.to_string(),
            'g' => number(self.iso_week().0 % 100, 2),
            'V' => number(self.iso_week().1, 2),
            'U' => number(self.week(self.weekday as u64), 2),
            'W' => number(self.week(self.days_since_monday()), 2),
            'u' => (self.days_since_monday() + 1).to_string(),
            'k' => spaced(self.hour),
            'l' => spaced(hour12),
            'P' => if self.hour < 12 { "am" } else { "pm" }.to_owned(),
            'F' => compound("%Y-%m-%d")?,
            'D' | 'x' => compound("%m/%d/%y")?,
            'T' | 'X' => compound("%H:%M:%S")?,
            'R' => compound("%H:%M")?,
            'r' => compound("%I:%M:%S %p")?,
            'c' => compound("%a %b %e %H:%M:%S %Y")?,
            'Z' | 'z' => String::new(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }

    fn days_since_monday(&self) -> u64 {
        (self.weekday as u64 + 6) % 7
    }

    /// The week of the year, where week 1 begins with the year's first day of the week, and `weekday` is today's number.
    fn week(&self, weekday: u64) -> u64 {
        (self.day_of_year + 7 - weekday) / 7
    }

    /// Year and week of ISO 8601: a week belongs to the year that its Thursday is in.
    fn iso_week(&self) -> (u64, u64) {
        let thursday = self.day_of_year + 3;
        match thursday.checked_sub(self.days_since_monday()) {
            None => {
                let year = self.year - 1;
                (year, (thursday + days_in_year(year) - self.days_since_monday()) / 7 + 1)
            }
            Some(thursday) if thursday >= days_in_year(self.year) => (self.year + 1, 1),
            Some(thursday) => (self.year, thursday / 7 + 1),
        }
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_in_month(year: u64, month: usize) -> u64 {
    match month {
        1 if is_leap(year) => 29,
        1 => 28,
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values are those of `date -u -d @SECONDS` of GNU coreutils.
    #[test]
    fn known_seconds() {
        let format = "%Y-%m-%d %H:%M:%S %I %p %j %a %A %b %B %y %e|%-d|%-I %w %F %T %%";
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 12 AM 001 Thu Thursday Jan January 70  1|1|12 4 1970-01-01 00:00:00 %"),
            (
                951782399,
                "2000-02-28 23:59:59 11 PM 059 Mon Monday Feb February 00 28|28|11 1 2000-02-28 23:59:59 %",
            ),
            (
                951782400,
                "2000-02-29 00:00:00 12 AM 060 Tue Tuesday Feb February 00 29|29|12 2 2000-02-29 00:00:00 %",
            ),
            (
                951868800,
                "2000-03-01 00:00:00 12 AM 061 Wed Wednesday Mar March 00  1|1|12 3 2000-03-01 00:00:00 %",
            ),
            (
                1735689599,
                "2024-12-31 23:59:59 11 PM 366 Tue Tuesday Dec December 24 31|31|11 2 2024-12-31 23:59:59 %",
            ),
            (
                1735689600,
                "2025-01-01 00:00:00 12 AM 001 Wed Wednesday Jan January 25  1|1|12 3 2025-01-01 00:00:00 %",
            ),
            (
                4107542400,
                "2100-03-01 00:00:00 12 AM 060 Mon Monday Mar March 00  1|1|12 1 2100-03-01 00:00:00 %",
            ),
            (
                1709210096,
                "2024-02-29 12:34:56 12 PM 060 Thu Thursday Feb February 24 29|29|12 4 2024-02-29 12:34:56 %",
            ),
            (
                13574653323,
                "2400-03-01 01:02:03 01 AM 061 Wed Wednesday Mar March 00  1|1|1 3 2400-03-01 01:02:03 %",
            ),
        ] {
            assert_eq!(strftime(format, seconds).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn unknown_directives_are_named() {
        assert_eq!(strftime("%Y %Q", 0), Err("strftime directive \"%Q\" is not known".to_owned()));
        assert_eq!(strftime("%-", 0), Err("strftime directive \"%-\" is not known".to_owned()));
        assert!(strftime("%", 0).is_err());
        assert!(strftime("%Y", u64::MAX).is_ok());
    }
}
