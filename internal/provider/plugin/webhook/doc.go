// Package webhook calls plugins as services: each request is an HTTPS POST, signed
// by the rules of Standard Webhooks (https://www.standardwebhooks.com, HMAC-SHA-256),
// and the body of the response with status 200 is the answer.
//
// Guarantees:
//
//   - The service's certificate is verified for the host of the URL, TLS is 1.2 or
//     newer; plain HTTP goes to loopback addresses only. Certificates are read for
//     every connection, so that their renewal needs no restart.
//   - Nothing is sent elsewhere: redirects are not followed, and no proxy is taken
//     from the environment.
//   - Every request is signed with all present signing secrets, so that a service
//     that knows one of them accepts it; the secrets are read for every request.
//   - At most plugin.MaxAnswer bytes of a response are read, uncompressed, and only
//     one with status 200 is an answer. What others say is quoted scrubbed.
package webhook
