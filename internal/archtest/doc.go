// Package archtest holds the rules of the house as tests: who may import whom,
// what a pure package may not do, how much the brain of a pool may know, and a
// few manners of the text itself. It has no code of its own.
//
// Every rule says why it is there and prints that when it is broken, so read the
// reason before changing the rule. Rules work on parsed source alone: they need
// no build, and take a fraction of a second. For every rule there are sources
// that break it, in examples_test.go; a rule that no example breaks fails the
// test, because a rule that cannot fail holds nothing.
//
// A new package gets a row in rooms_test.go; that row is where its place in the
// house is discussed.
package archtest
