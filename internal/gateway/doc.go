// Package gateway is the process that serves a region from a sealed cache of its own:
// it joins the parts that relay deliveries, verify what clients show, and take
// requests in.
//
// Guarantees:
//
//   - It starts, and serves what its cache holds, whether the centre answers or not.
//   - It is a client of the centre: it has the rights of its token and no others.
//   - What is on its disk is sealed by the keeper; a folder belongs to one gateway and
//     one centre.
package gateway
