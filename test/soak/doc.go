// Package soak holds the endurance test: mixed traffic, clients that leave,
// engines that misbehave, endpoints that come and go, and afterwards nothing may
// be left behind.
//
//	go test ./test/soak -run Soak -soak 20m -timeout 40m -v
package soak
