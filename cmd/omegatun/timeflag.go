package main

import (
	"errors"
	"time"

	"github.com/spf13/pflag"
)

// leastTime is the least that a flag for a time takes: control messages carry milliseconds.
const leastTime = time.Millisecond

// timeFlag is a flag for a time to wait, which nothing and less than nothing are not.
type timeFlag time.Duration

// timeVar defines a flag for a time of at least leastTime. A word in backquotes in usage names its value.
func timeVar(f *pflag.FlagSet, to *time.Duration, name, shorthand string, value time.Duration, usage string) {
	*to = value
	f.VarP((*timeFlag)(to), name, shorthand, usage)
}

func (t *timeFlag) Set(s string) error {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return errors.New("it is not a time such as 500ms, 30s or 5m")
	case d < leastTime:
		return errors.New("it must be at least " + leastTime.String())
	}
	*t = timeFlag(d)
	return nil
}

func (t *timeFlag) String() string { return time.Duration(*t).String() }

func (t *timeFlag) Type() string { return "duration" }
