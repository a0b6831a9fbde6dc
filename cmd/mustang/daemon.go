// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/mustang-net/mustang/config"
)

func daemonCommand(e env) *cli.Command {
	return verb{
		name: "daemon", usage: "serve Docker and the command line until stopped",
		about: "The datapath keeps forwarding, load-balancing and publishing while the daemon is stopped.\n" +
			"Logs go to stderr. SIGHUP has the configuration read anew.",
		flags: []cli.Flag{&cli.BoolFlag{Name: "check", DisableDefaultText: true,
			Usage: "serve nothing: say what the configuration is and what on this host it does not fit; the exit code is 0 only if it is right"}},
		run: func(c *cli.Context) error {
			if c.Bool("check") {
				return e.check(c)
			}
			cfg, err := e.config(c)
			if err != nil {
				return turnAway(err, newLogger(cfg, e.stderr))
			}
			again := func() (config.Config, error) { return e.config(c) }
			return e.explain(e.daemon(c.Context, cfg, newLogger(cfg, e.stderr), again))
		},
	}.command()
}

// newLogger writes to w what cfg asks for.
func newLogger(cfg config.Config, w io.Writer) *logrus.Logger {
	log := logrus.New()
	log.SetOutput(w)
	logAs(log, cfg)
	return log
}

// logAs makes a log what cfg asks for.
func logAs(log *logrus.Logger, cfg config.Config) {
	if level, err := logrus.ParseLevel(cfg.LogLevel); err == nil {
		log.SetLevel(level)
	}
	var format logrus.Formatter = &logrus.TextFormatter{FullTimestamp: true}
	if cfg.LogFormat == "json" {
		format = &logrus.JSONFormatter{}
	}
	log.SetFormatter(&quiet{Formatter: format, now: time.Now, told: map[string]*repeats{}})
}
