//! HTTP dates: the one form that is written, and the three that are read.
use oci::Timestamp;

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];

/// Unix seconds of `Sun, 06 Nov 1994 08:49:37 GMT`, `Sunday, 06-Nov-94 08:49:37 GMT` or `Sun Nov  6 08:49:37 1994`.
pub fn parse(text: &str) -> Option<i64> {
    let words: Vec<&str> = text.split([' ', '-', ',']).filter(|w| !w.is_empty()).collect();
    let (day, month, year, time) = match words.as_slice() {
        // Servers write the second form with whatever their zone is called; it is taken for GMT, as Go does.
        [_, day, month, year, time, zone] if *zone == "GMT" || (text.contains('-') && is_zone(zone)) => (*day, *month, *year, *time),
        [_, month, day, time, year] => (*day, *month, *year, *time),
        _ => return None,
    };
    let month = MONTHS.iter().position(|m| *m == month)? + 1;
    let (day, year): (u32, i64) = (day.parse().ok()?, year.parse().ok()?);
    let year = match year {
        0..69 => year + 2000,
        69..100 => year + 1900,
        _ => year,
    };
    format!("{year:04}-{month:02}-{day:02}T{time}Z").parse::<Timestamp>().ok().map(Timestamp::unix_seconds)
}

fn is_zone(text: &str) -> bool {
    matches!(text.len(), 3 | 4) && text.bytes().all(|b| b.is_ascii_uppercase())
}

/// As in `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn format(seconds: i64) -> String {
    let text = Timestamp::from_unix(seconds, 0).to_string();
    let weekday = DAYS[seconds.div_euclid(86_400).rem_euclid(7) as usize];
    let month = text[5..7].parse::<usize>().map_or("", |m| MONTHS[m - 1]);
    format!("{weekday}, {} {month} {} {} GMT", &text[8..10], &text[..4], &text[11..19])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_three_forms_and_writes_one() {
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 UTC",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(parse(text), Some(784_111_777), "{text}");
        }
        assert_eq!(format(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(format(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        for bad in ["", "yesterday", "Sun, 06 Xyz 1994 08:49:37 GMT", "Sun, 31 Feb 1994 08:49:37 GMT", "Sun, 06 Nov 1994 25:49:37 GMT"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
