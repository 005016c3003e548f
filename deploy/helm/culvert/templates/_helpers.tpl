{{/* Labels of everything; the argument has the chart's context and the component. */}}
{{- define "culvert.labels" -}}
{{ include "culvert.selector" . }}
app.kubernetes.io/part-of: culvert
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* What does not change from one version to the next. */}}
{{- define "culvert.selector" -}}
app.kubernetes.io/name: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{- define "culvert.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* The name that certificates of the control plane have. */}}
{{- define "culvert.control" -}}
culvertd.{{ .Release.Namespace }}.svc
{{- end }}

{{/* Made before an uninstallation, and gone after it; the argument is the order. */}}
{{- define "culvert.before-uninstall" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
