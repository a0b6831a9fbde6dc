// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// usageError is a mistake in the command line itself: exit code 2.
type usageError struct {
	command string // whose help tells more
	err     error
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(c *cli.Context, format string, args ...any) error {
	return &usageError{commandName(c), fmt.Errorf(format, args...)}
}

func commandName(c *cli.Context) string {
	if c.Command == nil || c.Command.HelpName == "" {
		return c.App.HelpName
	}
	return c.Command.HelpName
}

// about begins a message with the command it is about: "svc ls: ", or nothing for mustang itself.
func about(c *cli.Context) string {
	name, ok := strings.CutPrefix(commandName(c), c.App.HelpName+" ")
	if !ok {
		return ""
	}
	return name + ": "
}

// unknownCommand runs when no verb did: it shows the help, or names the verb that was likely meant.
func unknownCommand(c *cli.Context) error {
	if !c.Args().Present() {
		if c.Command == nil || c.Command.Name == "" || c.Command.HelpName == c.App.HelpName {
			return cli.ShowAppHelp(c)
		}
		return cli.ShowSubcommandHelp(c)
	}
	commands := c.App.Commands
	if c.Command != nil && len(c.Command.Subcommands) > 0 {
		commands = c.Command.Subcommands
	}
	name := c.Args().First()
	hint := cli.SuggestCommand(commands, name)
	if hint == fmt.Sprintf(cli.SuggestDidYouMeanTemplate, "") {
		hint = "" // nothing is like it
	}
	if hint = strings.TrimSpace(hint); hint != "" {
		hint += " "
	}
	var names []string
	for _, command := range commands {
		if command.Name != "help" && !command.Hidden {
			names = append(names, command.Name)
		}
	}
	return usagef(c, "%sunknown command %q: %sCommands: %s", about(c), name, hint, strings.Join(names, ", "))
}

const undefinedFlag = "flag provided but not defined: "

// flagError turns cli's complaint about a flag into ours, with the flag that was likely meant.
func flagError(c *cli.Context, err error, _ bool) error {
	given, undefined := strings.CutPrefix(err.Error(), undefinedFlag)
	if !undefined {
		return usagef(c, "%s%w", about(c), err)
	}
	name := strings.TrimLeft(given, "-")
	flags := c.App.Flags
	if c.Command != nil && c.Command.HelpName != c.App.HelpName {
		flags = c.Command.Flags
		if slices.ContainsFunc(c.App.Flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) }) {
			return usagef(c, "--%s is for every command: put it first, as in mustang --%s=… %s", name, name,
				strings.TrimPrefix(commandName(c), c.App.HelpName+" "))
		}
	}
	// the nearest of all may be far away: who mistypes a name seldom does so at its first letter
	if nearest := cli.SuggestFlag(flags, name, false); strings.HasPrefix(strings.TrimLeft(nearest, "-"), name[:min(1, len(name))]) && nearest != "" {
		return usagef(c, "%sunknown flag --%s: did you mean %s?", about(c), name, nearest)
	}
	if len(name) > 1 {
		given = "--" + name
	}
	return usagef(c, "%sunknown flag %s", about(c), given)
}

// interspersed moves the flags of the innermost command before its operands, so that
// `svc inspect web -o yaml` means what it says: cli stops looking for flags at the first operand.
func interspersed(app *cli.App, args []string) []string {
	if len(args) == 0 || args[len(args)-1] == completionFlag {
		return args
	}
	flags, commands := app.Flags, app.Commands
	i := 1
	for i < len(args) && len(commands) > 0 {
		if isFlag(args[i]) {
			i += flagLength(flags, args[i])
			continue
		}
		at := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(args[i]) })
		if at < 0 {
			return args
		}
		flags, commands = commands[at].Flags, commands[at].Subcommands
		i++
	}
	if i >= len(args) {
		return args
	}
	out := slices.Clone(args[:i])
	var operands []string
	for i < len(args) {
		if args[i] == "--" {
			operands = append(operands, args[i+1:]...)
			break
		}
		if !isFlag(args[i]) {
			operands = append(operands, args[i])
			i++
			continue
		}
		end := i + flagLength(flags, args[i])
		if end > len(args) {
			// The value is missing: without operands after it, cli says so.
			return append(out, args[i])
		}
		out = append(out, args[i:end]...)
		i = end
	}
	if len(operands) == 0 {
		return out
	}
	return append(append(out, "--"), operands...)
}

func isFlag(arg string) bool { return len(arg) > 1 && arg[0] == '-' && arg != "--" }

// flagLength is how many arguments a flag takes up, itself included.
func flagLength(flags []cli.Flag, arg string) int {
	if strings.Contains(arg, "=") {
		return 1
	}
	name := strings.TrimLeft(arg, "-")
	for _, f := range flags {
		if !slices.Contains(f.Names(), name) {
			continue
		}
		if g, ok := f.(*cli.GenericFlag); ok {
			if optional, ok := g.Value.(interface{ IsBoolFlag() bool }); ok && optional.IsBoolFlag() {
				return 1
			}
		}
		if d, ok := f.(cli.DocGenerationFlag); ok && d.TakesValue() {
			return 2
		}
	}
	return 1
}
