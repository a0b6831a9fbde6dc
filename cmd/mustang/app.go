// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/bench"
	"github.com/mustang-net/mustang/config"
)

// env is everything outside that a command can see, so that tests run commands in-process.
type env struct {
	args           []string // with the program's name
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	euid           int // effective user id
	// open returns what answers the commands and a function that lets go of it.
	open func(context.Context, config.Config) (api.Host, func() error, error)
	// daemon serves; the last argument reads the configuration anew.
	daemon func(context.Context, config.Config, *logrus.Logger, func() (config.Config, error)) error
	// contradictions says what on this host a configuration does not fit.
	contradictions func(config.Config) []error
	bench          func(context.Context, bench.Options, bench.Progress) (bench.Result, error)
	purge          func(context.Context, config.Config, purgeOptions) error
}

// Exit codes of the command line.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// run executes one command line and returns its exit code.
func run(ctx context.Context, e env) int {
	app := newApp(e)
	err := app.RunContext(ctx, interspersed(app, e.args))
	if err == nil {
		return exitOK
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintf(e.stderr, "mustang: %s\n", line)
	}
	// cli's own exit errors tell of help topics that do not exist.
	if _, ofCLI := errors.AsType[cli.ExitCoder](err); ofCLI {
		return exitUsage
	}
	if usage, ok := errors.AsType[*usageError](err); ok {
		fmt.Fprintf(e.stderr, "See %q.\n", usage.command+" --help")
		return exitUsage
	}
	return exitFailed
}

func newApp(e env) *cli.App {
	app := cli.NewApp()
	app.Name = "mustang"
	app.HelpName = "mustang"
	app.Usage = "container networks and load-balanced virtual IPs in eBPF"
	app.Version = versionLine()
	app.Writer, app.ErrWriter, app.Reader = e.stdout, e.stderr, e.stdin
	app.Flags = []cli.Flag{
		&cli.StringFlag{Name: "config", Usage: "read the configuration from `FILE` (default: " + config.DefaultPath + ", if it exists)"},
		&cli.StringFlag{Name: "log-level", Usage: "log from `LEVEL` on: " + strings.Join(config.LogLevels, ", ")},
	}
	app.Commands = []*cli.Command{
		daemonCommand(e), svcCommand(e), epCommand(e), networkCommand(e), portsCommand(e), statusCommand(e),
		verifyCommand(e), monitorCommand(e), benchCommand(e), purgeCommand(e), completionCommand(e), versionCommand(e),
		helperCommand(e),
	}
	app.Commands = append(app.Commands, manCommands(e)...)
	app.EnableBashCompletion = true
	app.Action = unknownCommand
	app.OnUsageError = flagError
	// Errors come back from RunContext; cli would end the process.
	app.ExitErrHandler = func(*cli.Context, error) {}
	return app
}

// verb is one command that does something. Its name is what the user types last.
type verb struct {
	name, usage, about string
	args               string // operands, as the help shows them
	min, max           int    // how many operands; max < 0 is any number
	flags              []cli.Flag
	run                func(*cli.Context) error
}

func (v verb) command() *cli.Command {
	return &cli.Command{
		Name: v.name, Usage: v.usage, Description: v.about, Flags: v.flags,
		Args: v.max != 0, ArgsUsage: v.args, HideHelpCommand: true, OnUsageError: flagError,
		Action: func(c *cli.Context) error {
			switch n := c.NArg(); {
			case n < v.min:
				return usagef(c, "%s%s is missing", about(c), strings.TrimSuffix(v.args, "..."))
			case v.max >= 0 && n > v.max:
				return usagef(c, "%sunexpected argument %q", about(c), c.Args().Get(v.max))
			}
			return v.run(c)
		},
	}
}

// noun groups the verbs of one kind of thing.
func noun(name, usage string, verbs ...verb) *cli.Command {
	n := &cli.Command{Name: name, Usage: usage, Action: unknownCommand, OnUsageError: flagError}
	for _, v := range verbs {
		n.Subcommands = append(n.Subcommands, v.command())
	}
	return n
}

// config loads the configuration that the global flags ask for.
func (e env) config(c *cli.Context) (config.Config, error) {
	cfg, err := config.Load(c.String("config"), e.getenv)
	if err != nil {
		return cfg, e.explain(err)
	}
	if level := c.String("log-level"); level != "" {
		if !slices.Contains(config.LogLevels, level) {
			return cfg, usagef(c, "--log-level %q: choose among %s", level, strings.Join(config.LogLevels, ", "))
		}
		cfg.LogLevel = level
	}
	return cfg, nil
}

// host runs use with the Host that answers commands, and lets go of it afterwards.
func (e env) host(c *cli.Context, use func(context.Context, api.Host) error) (err error) {
	cfg, err := e.config(c)
	if err != nil {
		return err
	}
	h, release, err := e.open(c.Context, cfg)
	if err != nil {
		return e.explain(err)
	}
	defer func() { err = errors.Join(err, release()) }()
	return e.explain(use(c.Context, h))
}

// explain adds what to do to an error that comes of not being root. Commands that work without root
// are not kept from working.
func (e env) explain(err error) error {
	if e.euid != 0 && errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: mustang needs root here: run it with sudo", err)
	}
	return err
}

// each runs do for every operand, and goes on after a failure: the others are as independent of it
// as if they had been typed one by one.
func each(refs []string, do func(ref string) error) error {
	var failed []error
	for _, ref := range refs {
		if err := do(ref); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}
