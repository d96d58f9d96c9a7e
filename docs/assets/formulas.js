// KaTeX sets $$..$$ and \(..\) on every page; arithmatex leaves them in elements of the class "arithmatex".
const delimiters = [
  { left: "\\[", right: "\\]", display: true },
  { left: "\\(", right: "\\)", display: false },
];
document$.subscribe(({ body }) => {
  for (const element of body.querySelectorAll(".arithmatex")) renderMathInElement(element, { delimiters });
});
