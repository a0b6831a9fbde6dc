// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/mustang-net/mustang/config"
)

func daemonCommand(e env) *cli.Command {
	return verb{
		name: "daemon", usage: "serve Docker and the command line until stopped",
		about: "The datapath keeps forwarding, load-balancing and publishing while the daemon is stopped.\n" +
			"Logs go to stderr.",
		run: func(c *cli.Context) error {
			cfg, err := e.config(c)
			if err != nil {
				return turnAway(err, newLogger(cfg, e.stderr))
			}
			return e.explain(e.daemon(c.Context, cfg, newLogger(cfg, e.stderr)))
		},
	}.command()
}

// newLogger writes to w what cfg asks for.
func newLogger(cfg config.Config, w io.Writer) *logrus.Logger {
	log := logrus.New()
	log.SetOutput(w)
	if level, err := logrus.ParseLevel(cfg.LogLevel); err == nil {
		log.SetLevel(level)
	}
	log.SetFormatter(&logrus.TextFormatter{FullTimestamp: true})
	if cfg.LogFormat == "json" {
		log.SetFormatter(&logrus.JSONFormatter{})
	}
	return log
}
