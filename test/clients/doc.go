// Package clients holds the tests that speak to Penstock with other people's
// client libraries: what works with them works with what users write.
package clients
