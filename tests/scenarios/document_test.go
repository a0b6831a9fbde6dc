// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// images that documents use as a reader would, each made of mustang-test: its name, and what it runs.
var images = map[string]string{
	"alpine":         `["sh"]`,
	"nginx":          `["sh", "-c", "echo 'Welcome to nginx!' >/tmp/index.html; exec httpd -f -p 80 -h /tmp"]`,
	"traefik/whoami": `["sh", "-c", "echo Hostname: $(hostname) >/tmp/index.html; exec httpd -f -p 80 -h /tmp"]`,
}

// step is one command of a document with the output that it shows there, or a file that it tells the reader to write.
type step struct {
	line    int
	command string
	output  []string
	file    string
	text    string
}

// follow does what a document says, as its reader would: `follow DOCUMENT [HEADING]… [!HEADING]…`, with the path from the checkout; without
// a heading all of it, but never what is below one with an exclamation mark. Fenced blocks `console` hold commands after "$ " (continued after "> ") and their output, in which … stands for anything, alone on a line for
// any lines; after a command without output its output may be anything. A block `LANGUAGE FILE` is the content of that file.
func follow(_ *scenario, dir string, args []string) (r result) {
	if len(args) < 1 {
		return failure("usage: follow DOCUMENT [HEADING]… [!HEADING]…")
	}
	text, err := os.ReadFile(checkout(args[0]))
	if err != nil {
		return result{err: err}
	}
	steps, missing := stepsOf(string(text), args[1:])
	if len(steps) == 0 || len(missing) > 0 {
		return failure("%s: %d commands to follow; there is no heading %q", args[0], len(steps), missing)
	}
	if err := haveImages(string(text)); err != nil {
		return result{err: err}
	}
	for _, s := range steps {
		if s.file != "" {
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(s.file)), []byte(s.text), 0o600); err != nil {
				return result{err: err}
			}
			continue
		}
		out, err := s.run(dir)
		r.stdout += "$ " + s.command + "\n" + out
		if err != nil {
			r.err = fmt.Errorf("%s:%d: %s: %w", args[0], s.line, s.command, err)
			return r
		}
	}
	return r
}

// documented runs, in the project's directory, a command line that must stand so in a document, alone on a line:
// `documented FILE COMMAND…` on the host, `booted FILE COMMAND…` where systemd runs.
func documented(shell ...string) command {
	return func(_ *scenario, dir string, args []string) result {
		if len(args) < 2 {
			return failure("usage: documented FILE COMMAND…")
		}
		text, err := os.ReadFile(checkout(args[0]))
		if err != nil {
			return result{err: err}
		}
		line := strings.Join(args[1:], " ")
		if !slices.ContainsFunc(strings.Split(string(text), "\n"), func(l string) bool {
			l, _, _ = strings.Cut(l, " #")
			return strings.TrimSpace(l) == line
		}) {
			return failure("%s does not tell readers to run: %s", args[0], line)
		}
		return run(dir, append(shell[:len(shell):len(shell)], "cd "+checkout(".")+" && "+line)...)
	}
}

// haveImages makes those that a document names.
func haveImages(text string) error {
	for name, command := range images {
		if !strings.Contains(text, name) {
			continue
		}
		r := run("/", "sh", "-c", `docker image inspect "$1" >/dev/null 2>&1 || docker import -c "CMD $2" "$("$0")" "$1"`,
			checkout("tests/image/build"), name, command)
		if r.err != nil {
			return fmt.Errorf("make the image %s: %w: %s", name, r.err, r.stderr)
		}
	}
	return nil
}

var (
	headingLine = regexp.MustCompile(`^(#+) (.*)`)
	fence       = regexp.MustCompile("^```(\\S*) ?(.*)$")
)

// stepsOf reads the blocks below the headings that are asked for, and says which of these there are not.
func stepsOf(text string, headings []string) (steps []step, missing []string) {
	var open []string // the headings that a line is below, by level
	var language, file string
	seen := map[string]bool{}
	inBlock, within := false, wanted(nil, headings)
	for i, line := range strings.Split(text, "\n") {
		if f := fence.FindStringSubmatch(line); f != nil {
			inBlock = !inBlock
			language, file = f[1], f[2]
			if inBlock && within && language != "console" && file != "" {
				steps = append(steps, step{line: i + 1, file: file})
			}
			continue
		}
		if h := headingLine.FindStringSubmatch(line); h != nil && !inBlock {
			open = append(open[:min(len(open), len(h[1])-1)], h[2])
			seen[h[2]] = true
			within = wanted(open, headings)
		}
		if !inBlock || !within {
			continue
		}
		switch last := len(steps) - 1; {
		case language != "console" && file != "":
			steps[last].text += line + "\n"
		case language != "console":
		case strings.HasPrefix(line, "$ "):
			steps = append(steps, step{line: i + 1, command: line[2:]})
		case strings.HasPrefix(line, "> ") && last >= 0 && len(steps[last].output) == 0:
			steps[last].command += "\n" + line[2:]
		case strings.HasPrefix(line, "# ") || last < 0 || strings.TrimSpace(line) == "":
		default:
			steps[last].output = append(steps[last].output, line)
		}
	}
	for _, h := range headings {
		if name := strings.TrimPrefix(h, "!"); !seen[name] {
			missing = append(missing, name)
		}
	}
	return steps, missing
}

// wanted tells whether what is below the open headings is asked for.
func wanted(open, headings []string) bool {
	all, below := true, false
	for _, h := range headings {
		name, not := strings.CutPrefix(h, "!")
		switch is := slices.Contains(open, name); {
		case not && is:
			return false
		case !not:
			all, below = false, below || is
		}
	}
	return all || below
}

// looking are commands that change nothing, which a reader types again when a container has not quite started.
var looking = regexp.MustCompile(`^(docker (run --rm|exec|ps|logs|port|compose ps|compose exec|inspect)|nerdctl (exec|ps|run --rm)|curl|wget|ping|ip |mustang (svc ls|ep ls|ports|status|network ls|verify))`)

// complaint is how output begins whose command fails.
var complaint = regexp.MustCompile(`(?mi)^(docker: |mustang: |error|wget: )`)

// run does the step until its output is what the document says.
func (s step) run(dir string) (string, error) {
	shown, fails := s.pattern(), complaint.MatchString(strings.Join(s.output, "\n"))
	for end := time.Now().Add(patience(10 * time.Second)); ; time.Sleep(patience(100 * time.Millisecond)) {
		r := run(dir, "bash", "-euo", "pipefail", "-c", s.command)
		out := r.stdout + r.stderr
		var err error
		switch {
		case fails && r.err == nil:
			err = fmt.Errorf("it succeeded, but the document shows an error")
		case !fails && r.err != nil:
			err = fmt.Errorf("%w: %s", r.err, out)
		case shown != nil && !shown.MatchString(out):
			err = fmt.Errorf("the output is not the document's:\n%s", out)
		}
		if err == nil || !looking.MatchString(s.command) || time.Now().After(end) {
			return out, err
		}
	}
}

// pattern is what the output must match; nil is anything.
func (s step) pattern() *regexp.Regexp {
	if len(s.output) == 0 {
		return nil
	}
	text := `^\s*`
	for _, line := range s.output {
		if strings.TrimSpace(line) == "…" {
			text += `(?:.*\n)*?`
			continue
		}
		words := strings.Fields(line) // the width of columns depends on what is in them
		for i, word := range words {
			words[i] = strings.ReplaceAll(regexp.QuoteMeta(word), "…", `.*?`)
		}
		text += `[ \t]*` + strings.Join(words, `[ \t]+`) + `[ \t]*\n`
	}
	return regexp.MustCompile(text + `\s*$`)
}
