// SPDX-License-Identifier: Apache-2.0

package api

import (
	stdlog "log"
	"strings"

	"github.com/sirupsen/logrus"
)

// logWriter passes what net/http has to say (panics of handlers, mostly) on to our log.
type logWriter struct{ log logrus.FieldLogger }

func (w *logWriter) Write(line []byte) (int, error) {
	w.log.Warn(strings.TrimSpace(string(line)))
	return len(line), nil
}

func stdLogger(w *logWriter) *stdlog.Logger { return stdlog.New(w, "", 0) }
