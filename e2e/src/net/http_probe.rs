//! `GET` of an admin endpoint over plain HTTP.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Requests a path and returns the status code and the body.
///
/// # Errors
/// If nothing listens there, or the answer is not HTTP.
pub async fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    get_with_token(address, path, None).await
}

/// The same with a bearer token.
///
/// # Errors
/// If nothing listens there, or the answer is not HTTP.
pub async fn get_with_token(
    address: SocketAddr,
    path: &str,
    token: Option<&str>,
) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    // HTTP/1.0: the body ends with the connection, without chunks.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nAccept: */*\r\n{authorization}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    parse(&String::from_utf8_lossy(&answer))
        .ok_or_else(|| std::io::Error::other(format!("{address}{path} does not answer in HTTP")))
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let code = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
    Some((code.parse().ok()?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn parses_status_and_body() {
        assert_eq!(
            parse("HTTP/1.1 503 Not Ready\r\na: b\r\n\r\nwhy\r\n\r\n"),
            Some((503, "why\r\n\r\n".to_owned()))
        );
        assert_eq!(parse("SSH-2.0-x\r\n\r\n"), None);
    }
}
