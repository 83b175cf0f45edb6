//! AWS Signature Version 4 in its header form, as the S3 service wants it.
use oci::{Digest, Timestamp};
use ring::hmac;

use super::request::escape;

/// Who signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    pub access: String,
    pub secret: String,
    /// Of temporary credentials.
    pub token: Option<String>,
}

/// What is signed. The path is escaped, the query is not.
pub struct Signed<'a> {
    pub method: &'a str,
    pub host: &'a str,
    pub path: &'a str,
    pub query: &'a [(&'a str, String)],
    pub headers: &'a [(String, String)],
    /// Hex, or one of the words that stand for it.
    pub payload: &'a str,
}

impl Signed<'_> {
    /// The headers to add: date, payload, token and the signature.
    pub fn headers(&self, keys: &Keys, region: &str, service: &str, now: Timestamp) -> Vec<(String, String)> {
        let date = amz_date(now);
        let day = &date[..8];
        let mut added = vec![("x-amz-content-sha256".to_owned(), self.payload.to_owned()), ("x-amz-date".to_owned(), date.clone())];
        added.extend(keys.token.iter().map(|token| ("x-amz-security-token".to_owned(), token.clone())));
        let mut all: Vec<(String, &str)> = vec![("host".to_owned(), self.host)];
        all.extend(self.headers.iter().chain(&added).map(|(k, v)| (k.to_ascii_lowercase(), v.trim())));
        all.sort();
        let names = all.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>().join(";");
        let headers: String = all.iter().map(|(k, v)| format!("{k}:{v}\n")).collect();
        let query = canonical_query(self.query);
        let canonical = format!("{}\n{}\n{query}\n{headers}\n{names}\n{}", self.method, self.path, self.payload);
        let scope = format!("{day}/{region}/{service}/aws4_request");
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", Digest::of(canonical).hex());
        let key = [day, region, service, "aws4_request"]
            .iter()
            .fold(format!("AWS4{}", keys.secret).into_bytes(), |key, part| mac(&key, part.as_bytes()));
        let signature = hex::encode(mac(&key, text.as_bytes()));
        let authorization = format!("AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}", keys.access);
        added.push(("authorization".to_owned(), authorization));
        added
    }
}

/// Sorted and escaped, as it also goes into the URL.
pub fn canonical_query(query: &[(&str, String)]) -> String {
    let mut pairs: Vec<String> = query.iter().map(|(k, v)| format!("{}={}", escape(k, false), escape(v, false))).collect();
    pairs.sort();
    pairs.join("&")
}

fn mac(key: &[u8], data: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data).as_ref().to_vec()
}

/// `20130524T000000Z`
fn amz_date(now: Timestamp) -> String {
    let whole = Timestamp::from_unix(now.unix_seconds(), 0).to_string();
    whole.chars().filter(|c| !matches!(c, '-' | ':')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of the service's own documentation.
    #[test]
    fn signs_as_documented() {
        let keys = Keys { access: "AKIAIOSFODNN7EXAMPLE".into(), secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(), token: None };
        let now: Timestamp = "2013-05-24T00:00:00Z".parse().unwrap();
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let signature = |signed: Signed<'_>| {
            let headers = signed.headers(&keys, "us-east-1", "s3", now);
            headers.last().unwrap().1.rsplit_once('=').unwrap().1.to_owned()
        };
        let get = Signed {
            method: "GET",
            host: "examplebucket.s3.amazonaws.com",
            path: "/test.txt",
            query: &[],
            headers: &[("Range".into(), "bytes=0-9".into())],
            payload: empty,
        };
        assert_eq!(signature(get), "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
        let put = Signed {
            method: "PUT",
            host: "examplebucket.s3.amazonaws.com",
            path: "/test%24file.text",
            query: &[],
            headers: &[
                ("date".into(), "Fri, 24 May 2013 00:00:00 GMT".into()),
                ("x-amz-storage-class".into(), "REDUCED_REDUNDANCY".into()),
            ],
            payload: "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
        };
        assert_eq!(signature(put), "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd");
        let list = Signed {
            method: "GET",
            host: "examplebucket.s3.amazonaws.com",
            path: "/",
            query: &[("max-keys", "2".into()), ("prefix", "J".into())],
            headers: &[],
            payload: empty,
        };
        assert_eq!(signature(list), "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
    }
}
