package main

import "context"

func adaptive(context.Context, options, *goals) error { return nil }
