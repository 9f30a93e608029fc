{{/* What everything is called. One release for each cluster: nodes, RuntimeClass and CRD are shared. */}}
{{- define "podmotion.name" -}}
komodor-podmotion
{{- end }}

{{- define "podmotion.node" -}}
komodor-podmotion-node
{{- end }}

{{- define "podmotion.namespace" -}}
{{- .Values.namespace.name | default .Release.Namespace -}}
{{- end }}

{{- define "podmotion.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "podmotion.node" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end }}

{{- define "podmotion.chart" -}}
{{- printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{/* Labels of everything but the pods and what they are selected by. */}}
{{- define "podmotion.labels" -}}
app.kubernetes.io/name: {{ include "podmotion.name" . }}
{{ include "podmotion.commonLabels" . }}
{{- end }}

{{- define "podmotion.commonLabels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: podmotion
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ include "podmotion.chart" . }}
{{- end }}

{{/* By which the DaemonSet knows its pods; it can never change. */}}
{{- define "podmotion.selector" -}}
app.kubernetes.io/name: {{ include "podmotion.node" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/*
The image of a part: dict with "root" and "image". A registry of the cluster takes the place of the one in the
repository, which is what stands before the first slash if it looks like a host.
*/}}
{{- define "podmotion.image" -}}
{{- $repository := .image.repository -}}
{{- $registry := .root.Values.global.imageRegistry | trimSuffix "/" -}}
{{- if $registry -}}
{{- $parts := splitList "/" $repository -}}
{{- $host := first $parts -}}
{{- if and (gt (len $parts) 1) (or (contains "." $host) (contains ":" $host) (eq $host "localhost")) -}}
{{- $repository = rest $parts | join "/" -}}
{{- end -}}
{{- $repository = printf "%s/%s" $registry $repository -}}
{{- end -}}
{{- printf "%s:%s" $repository .image.tag -}}
{{- end }}

{{/*
config.toml: a section for each object. Strings, numbers and lists of strings are written alike in JSON and TOML.
*/}}
{{- define "podmotion.config" -}}
{{- range $section, $keys := .Values.config }}
[{{ $section }}]
{{- range $key, $value := $keys }}
{{- /* What "helm --set" gives has a fraction as a text. */ -}}
{{- $fraction := and (kindIs "string" $value) (regexMatch "^[0-9]+\\.[0-9]+$" (toString $value)) }}
{{ $key }} = {{ ternary $value (toJson $value) $fraction }}
{{- end }}
{{- end }}
{{- end }}

{{/* The installer's arguments about the node's containerd. One in another place than usual has to be named. */}}
{{- define "podmotion.containerd" -}}
- --restart={{ .Values.installer.restart }}
{{- if ne .Values.manager.containerdSocket "/run/containerd/containerd.sock" }}
- --containerd-socket={{ .Values.manager.containerdSocket }}
{{- end }}
{{- end }}
